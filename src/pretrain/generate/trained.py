"""A trained model that is opened to write: that of a run directory, or of Hugging Face's files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from pretrain import sharding
from pretrain.config import Mistake, Node
from pretrain.data.tokenizer import Codec, HuggingFace
from pretrain.generate.generator import unsplit
from pretrain.launch import compile_cache, saved
from pretrain.models.model import Architecture, Compute
from pretrain.program import Program
from pretrain.run import Run
from pretrain.rundir import RunDirectory
from pretrain.sharding import Mesh, Rules

Report = Callable[[str], None]


class Setting(Node):
    """How a trained model is computed here, whatever it was trained on."""

    mesh: Mesh = Mesh()  # how many devices each mesh axis spans
    compute: Compute = Compute(dtype="float32")  # dtype of activations


@dataclass(frozen=True)
class Trained:
    """A model with its parameters on a mesh, and its tokenizer."""

    node: Architecture
    compute: Compute
    mesh: jax.sharding.Mesh
    rules: Rules
    graph: nnx.GraphDef
    params: Any
    tokenizer: Codec
    begin: tuple[int, ...]  # ids before the text of every prompt
    stop: tuple[int, ...]  # ids that end a text

    def ids(self, prompt: str) -> list[int]:
        """The ids of a prompt. Raises Mistake where it comes to none."""
        ids = [*self.begin, *self.tokenizer.encode_batch([prompt])[0].tolist()]
        if not ids:
            raise Mistake("a prompt is empty, and this model has no token that begins a text.")
        return ids


class RunFolder:
    """The newest checkpoint of a run directory whose checksums hold."""

    def __init__(self, path: str) -> None:
        self._directory = RunDirectory(path)
        run = saved(self._directory)
        if not isinstance(run, Run):
            raise Mistake(
                f"{self._directory.config} holds a {type(run).__name__}: it must be a Run."
            )
        self._run = run

    def setting(self) -> Setting:
        """All devices, computing as in training."""
        return Setting(compute=self._run.compute)

    def open(self, setting: Setting, report: Report) -> Trained:
        """The model on this machine's devices, its optimizer state left on the disk.

        Raises Mistake where no checkpoint can be used, or the model cannot be laid out so.
        """
        run = replace(self._run, rules=unsplit(self._run.rules), compute=setting.compute)
        compile_cache(run.compile_cache, report)
        mesh = setting.mesh.build()
        run.check_layout(mesh.shape)
        codec = run.data.tokenizer.load()
        with sharding.use(mesh, run.rules):
            program = Program(run, mesh)
            with run.checkpoint.build(self._directory.checkpoints, report) as checkpoints:
                restored = checkpoints.restore(program.state.params, within="params")
        if restored is None:
            raise Mistake(f"{self._directory.path} has no checkpoint yet: train it first.")
        report(f"checkpoint {restored[0]} of {self._directory.path}")
        return Trained(
            run.model, run.compute, mesh, run.rules, program.graph, restored[1], codec,
            begin=(codec.end,), stop=(codec.end,),
        )  # fmt: skip


class HuggingFaceFolder:
    """A directory with config.json, safetensors and tokenizer.json."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()

    def setting(self) -> Setting:
        """All devices, in fp32."""
        return Setting()

    def open(self, setting: Setting, report: Report) -> Trained:
        """The model on this machine's devices. Raises Mistake for what is not supported or missing."""
        from tokenizers import Tokenizer

        from pretrain.interop import hf, text

        path = self._path / text.FAST
        if not path.exists():
            raise Mistake(
                f"{path} does not exist: save it there with the model's tokenizer of transformers, "
                "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`."
            )
        compile_cache(Run.compile_cache, report)
        model = hf.load(self._path, mesh=setting.mesh, compute=setting.compute)
        node = text.tokenizer(self._path, model.kept)
        assert isinstance(node, HuggingFace)  # as the file is there
        codec = node.load()
        return Trained(
            model.node, model.compute, model.mesh, model.rules, model.graph, model.params, codec,
            # What the tokenizer's own template puts before a text.
            begin=tuple(Tokenizer.from_file(str(path)).encode("").ids),
            stop=ends(self._path / text.GENERATION, model.kept) or (codec.end,),
        )  # fmt: skip


def ends(path: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text: those of a generation file, or else those of the config.json."""
    try:
        said = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise Mistake(f"{path} is not JSON ({error}): save it again, or delete it.") from error
    ids = said.get("eos_token_id", config.get("eos_token_id"))
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)
