"""The command: run directories from Hugging Face's and back, and the proof of an export."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as Tokenizers
from tokenizers.models import WordLevel

import tiny
from hf_parity import imported, model_of, quickly
from pretrain.convert import main
from pretrain.data.tokenizer import Bytes
from pretrain.interop import folder, hf, proof, safetensors, text
from small import Place

# As Hugging Face's class has it, and with an id for every byte.
NODE = dataclasses.replace(tiny.GPT_2, vocab=256, d_model=32, heads=4, head_dim=8, context=64)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 that reads and writes bytes, in a directory of Hugging Face."""
    path = tmp_path_factory.mktemp("hf") / "gpt2"
    kept = {"eos_token_id": 0, "summary_first_dropout": 0.3}
    with quickly():
        hf.save(model_of(NODE, kept, text.exported(Bytes(), Bytes().load())), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory made of it, its vocabulary padded; tests that train take one of their own."""
    path = tmp_path_factory.mktemp("run") / "run"
    assert main(["from-hf", str(directory), str(path), "--vocab-multiple", "24"]) == 0
    return path


def tensors(directory: Path) -> dict[str, np.ndarray]:
    return {name: np.array(e.read()) for name, e in safetensors.entries(directory).items()}


def contents(directory: Path) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return files | {"config.json": json.loads(files["config.json"])}


def test_what_comes_from_hugging_face_goes_back_as_it_was(
    directory: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert main(["to-hf", str(checkpoint), str(tmp_path / "back")]) == 0
    want, got = contents(directory), contents(tmp_path / "back")
    assert got.keys() == want.keys()
    for name in want:
        assert got[name] == want[name], name


@pytest.mark.slow
def test_a_converted_checkpoint_is_a_run_that_goes_on(directory: Path, tmp_path: Path) -> None:
    """From the weights and no others, with an optimizer that starts; and it can be given back."""
    place = Place(tmp_path)
    assert (
        main(["from-hf", str(directory), str(tmp_path / "run"), "--config", str(place.config)]) == 0
    )
    assert place.resume("run", "--steps", "2") == 0
    jax.config.update("jax_compilation_cache_dir", None)
    weights = [np.square(x).sum(dtype=float) for x in tensors(directory).values()]
    first, second = (line for line in place.lines("run") if "loss" in line)
    assert first["step"] == 1 and second["step"] == 2
    np.testing.assert_allclose(first["param_norm"], math.sqrt(sum(weights)), rtol=1e-5)
    assert main(["to-hf", str(tmp_path / "run"), str(tmp_path / "tuned")]) == 0
    assert place.checkpoints("run") == [0, 2]
    assert contents(tmp_path / "tuned")["config.json"] == contents(directory)["config.json"]


def test_a_run_of_ones_own_becomes_a_directory_of_hugging_face(
    directory: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Without what came with converted weights: special ids and tokenizer are those of the run."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "checkpoints").symlink_to(checkpoint / "checkpoints")
    config = json.loads((checkpoint / "config.json").read_text())
    config["data"]["tokenizer"] = {"class": "pretrain.data.tokenizer.Bytes"}
    (own / "config.json").write_text(json.dumps(config))
    assert main(["to-hf", str(own), str(tmp_path / "export")]) == 0
    said = json.loads((tmp_path / "export" / "config.json").read_text())
    assert said["eos_token_id"] == Bytes().load().end and said["bos_token_id"] is None
    settings = json.loads((tmp_path / "export" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "\0"


def test_a_tokenizer_of_hugging_face_comes_back_with_its_end_of_documents(tmp_path: Path) -> None:
    """Which of several special tokens it is, config.json says."""
    made = Tokenizers(WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "<unk>": 3}, unk_token="<unk>"))
    made.add_special_tokens(["<pad>", "<eos>"])
    (tmp_path / "run").mkdir()
    made.save(str(tmp_path / "run" / "tokenizer.json"))
    node = text.tokenizer(tmp_path / "run", {"eos_token_id": [1, 0]})
    assert node is not None and node.load().end == 1
    files = text.exported(node, node.load())
    assert files["tokenizer.json"] == (tmp_path / "run" / "tokenizer.json").read_bytes()
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "<eos>"
    assert text.tokenizer(tmp_path, {}) is None


@pytest.mark.hf
@quickly()
def test_an_export_is_good_where_transformers_computes_the_same_and_only_there(
    directory: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    imported("transformers")
    command, answers = ["verify", str(directory), str(checkpoint)], {}

    def asked(*question: Any) -> Any:
        answers.update(proof_asked(*question))
        return answers

    proof_asked = proof.asked
    monkeypatch.setattr(proof, "asked", asked)
    assert main([*command, "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict.pop("logits") < 1e-5
    assert verdict == {
        "good": True,
        "architecture": "GPT2LMHeadModel",
        "greedy": True,
        "text": True,
    }
    for name in ("logits", "greedy", "encoded"):
        other = answers | {name: answers[name] + 1}
        monkeypatch.setattr(proof, "asked", lambda *_, other=other: other)
        assert main(command) == 1
        assert f"{directory} is NOT what the checkpoint is: in GPT2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["from-hf", "nowhere", "run"],
            "nowhere/config.json does not exist: name a directory of a",
        ),
        (["to-hf", "nowhere", "dir"], "nowhere/config.json does not exist: name a run's directory"),
        (["verify", "nowhere"], "required: CHECKPOINT (see --help)"),
        (
            ["from-hf", "a", "b", "--vocab-multiple", "0"],
            "--vocab-multiple is 0: make it 1 or more",
        ),
        (["to"], "invalid choice: 'to'"),
        ([], "required: from-hf | to-hf | verify"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("pretrain.convert: ") and words in said and said.count("\n") == 1


def test_an_interruption_ends_without_a_traceback(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_json", interrupted)
    assert main(["from-hf", str(directory), str(tmp_path / "run")]) == 130
    assert not any(tmp_path.iterdir()), "nothing is half written"


def test_help_says_what_each_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["from-hf"], ["to-hf"], ["verify"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
    said = capsys.readouterr().out
    assert "a run directory at step 0" in said and "pad the vocabulary" in said
