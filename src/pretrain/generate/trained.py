"""A trained model that is opened to write: that of a run directory, or of Hugging Face's files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from pretrain import sharding
from pretrain.config import Mistake, Node
from pretrain.data.tokenizer import Codec
from pretrain.generate.generator import unsplit
from pretrain.interop import hf, text
from pretrain.launch import compile_cache, saved
from pretrain.models.model import Compute
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

    model: hf.Model
    tokenizer: Codec
    begin: tuple[int, ...]  # ids before the text of every prompt
    stop: tuple[int, ...]  # ids that end a text

    def ids(self, prompt: str) -> list[int]:
        """The ids of a prompt. Raises Mistake where the model lacks one of them."""
        ids = [*self.begin, *self.tokenizer.encode_batch([prompt])[0].tolist()]
        if max(ids, default=0) >= self.model.node.vocab:
            raise Mistake(
                f"the tokenizer gives a prompt the id {max(ids)}, and the model's ids are 0 to "
                f"{self.model.node.vocab - 1}: the two do not belong together."
            )
        return ids


class RunFolder:
    """The newest checkpoint of a run directory whose checksums hold."""

    def __init__(self, path: str) -> None:
        self._directory = RunDirectory(path)
        said = self._directory.read_json("config.json")
        if isinstance(said, dict) and "model_type" in said:
            raise Mistake(
                f"{self._directory.path} is a directory of Hugging Face and no run: `generate --hf` "
                "writes with it, and `convert from-hf` makes a run of it."
            )
        self.run = saved(self._directory)

    def setting(self) -> Setting:
        """All devices, computing as in training."""
        return Setting(compute=self.run.compute)

    def open(self, setting: Setting, report: Report) -> Trained:
        """The model on this machine's devices, and what the run reads with.

        Raises Mistake where no checkpoint can be used, or the model cannot be laid out so.
        """
        run = replace(self.run, rules=unsplit(self.run.rules), compute=setting.compute)
        compile_cache(run.compile_cache, report)
        mesh = setting.mesh.build()
        run.check_layout(mesh.shape)
        codec = run.data.tokenizer.load()
        step, model = self.restored(mesh, run.rules, run.compute, report)
        report(f"checkpoint {step} of {self._directory.path}")
        return Trained(model, codec, begin=(codec.end,), stop=(codec.end,))

    def restored(
        self, mesh: jax.sharding.Mesh, rules: Rules, compute: Compute, report: Report
    ) -> tuple[int, hf.Model]:
        """The step of the checkpoint, and its model on a mesh: the optimizer's state is left on the disk.

        Raises Mistake where no checkpoint can be used.
        """
        with sharding.use(mesh, rules):
            graph, shapes = hf.skeleton(self.run.model, compute, mesh)
            with self.run.checkpoint.build(self._directory.checkpoints, report) as checkpoints:
                found = checkpoints.restore(shapes, within="params")
        if found is None:
            raise Mistake(f"{self._directory.path} has no checkpoint yet: train it first.")
        step, params, _ = found
        return step, hf.Model(self.run.model, compute, mesh, rules, graph, params)


class HuggingFaceFolder:
    """A directory with config.json, safetensors and a tokenizer."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()

    def setting(self) -> Setting:
        """All devices, in fp32."""
        return Setting()

    def open(self, setting: Setting, report: Report) -> Trained:
        """The model on this machine's devices. Raises Mistake for what is not supported or missing."""
        _, _, config = hf.described(self._path)
        node = text.tokenizer(self._path, config)
        if node is None:
            raise Mistake(
                f"{self._path} has neither {text.FAST} nor {text.PIECES}: save the model's tokenizer "
                "there, `AutoTokenizer.from_pretrained(...).save_pretrained(...)` of transformers."
            )
        codec = node.load()
        compile_cache(Run.compile_cache, report)
        model = hf.load(self._path, mesh=setting.mesh, compute=setting.compute)
        stop = text.ends(self._path, model.kept) or (codec.end,)
        if max(stop) >= model.node.vocab:
            report(
                f"eos_token_id is {max(stop)}, which the model does not have: no text ends with it"
            )
        return Trained(model, codec, text.begin(node), stop)
