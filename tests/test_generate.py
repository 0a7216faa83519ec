"""Text from a model: what the prompt's logits say, whatever stands beside it, on any mesh, compiled once."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from beam_reference import searched
from family_reference import drawn, logits
from pretrain import compiler
from pretrain.config import Mistake
from pretrain.generate import Beam, Choice, Draw, Generator, Greedy, Sample
from pretrain.generate.generator import SHORTEST, padded, unsplit
from pretrain.models.model import Decoder
from pretrain.program import Program
from tiny import (
    FAMILIES,
    FP32,
    GPT_2,
    GPT_3,
    LLAMA,
    MISTRAL,
    ONE,
    PALM,
    QUICK,
    RULES,
    RWKV_4,
    Axes,
    V,
    on,
    run,
)

PROMPT = [7, 3, 3, 59, 0]
OTHERS = [[11], PROMPT, [5, 1, 2, 9, 30, 31, 32, 8, 8, 8, 1, 44, 2]]
TOKENS = 7  # what GPT-2 has positions for after the longest of them
CHOICES = [Greedy(), Draw(temperature=0.7, top_k=30, top_p=0.95), Beam(beams=3)]
UNSPLIT = unsplit(RULES)


@pytest.fixture(autouse=True)
def quickly() -> Iterator[None]:
    """Programs that are compiled without optimisation."""
    with mock.patch.object(compiler, "cpu", lambda: QUICK):
        yield


@functools.cache
def program(model: Decoder, axes: Axes = ONE) -> tuple[Any, Any]:
    """The graph of a model and drawn parameters on a mesh."""
    with on(axes) as mesh:
        built = Program(run(model), mesh)
        like = built.state.params
        params = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), drawn(like), like)
    return built.graph, params


@functools.cache
def generator(
    model: Decoder, choice: Choice, axes: Axes = ONE, stop: tuple[int, ...] = ()
) -> Generator:
    return Generator(program(model, axes)[0], model, FP32, choice, stop)


def texts(
    model: Decoder,
    choice: Choice,
    prompts: Sequence[Sequence[int]] = (PROMPT,),
    *,
    seed: int = 0,
    tokens: int = TOKENS,
    axes: Axes = ONE,
    stop: tuple[int, ...] = (),
) -> list[list[int]]:
    _, params = program(model, axes)
    with on(axes, UNSPLIT):
        return generator(model, choice, axes, stop).write(params, prompts, tokens, seed)


@pytest.mark.parametrize("model", [*FAMILIES, MISTRAL])
def test_the_greedy_text_is_the_likeliest_token_after_all_before_it(model: Decoder) -> None:
    (ids,) = texts(model, Greedy(), tokens=12)
    assert len(ids) == 12
    row = np.asarray([PROMPT + ids])
    params = program(model)[1]
    logits_TV = logits(model, params, row, np.arange(row.size)[None], np.zeros_like(row))[0]
    assert ids == logits_TV[len(PROMPT) - 1 : -1].argmax(-1).tolist()
    assert [ids] == texts(model, Greedy(), tokens=12, seed=1)


@pytest.mark.parametrize("choice", [Greedy(), Beam(beams=3)])
@pytest.mark.parametrize("model", [GPT_3, MISTRAL, RWKV_4])
def test_prompts_of_different_lengths_are_continued_as_each_alone(
    model: Decoder, choice: Choice
) -> None:
    """Also where a window forgets the padding, and where a row ends, or has no position, before others."""
    stop = (2, 28, 30)
    together = texts(model, choice, OTHERS, stop=stop, tokens=10)
    assert len({len(ids) for ids in together}) > 1
    alone = [texts(model, choice, [prompt], stop=stop, tokens=10) for prompt in OTHERS]
    assert together == [ids for (ids,) in alone]


class Written(dict[tuple[int, ...], np.ndarray]):
    """Log-probabilities of the next token after a prompt and a text, by the reference in numpy."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt

    def __missing__(self, text: tuple[int, ...]) -> np.ndarray:
        row = np.asarray([[*self.prompt, *text]])
        where = np.arange(row.size)[None]
        last_V = logits(LLAMA, program(LLAMA)[1], row, where, np.zeros_like(row))[0, -1]
        self[text] = last_V - np.log(np.exp(last_V).sum())
        return self[text]


def test_a_search_follows_its_texts_through_the_cache() -> None:
    """It finds what a search finds that computes every text from its start."""
    beam, prompts = Beam(beams=4), [*OTHERS, [9], [20, 21], [33, 1, 33]]
    want = [searched(Written(prompt), beam, (), 6)[0][1] for prompt in prompts]
    assert texts(LLAMA, beam, prompts, tokens=6) == list(map(list, want))


def test_a_row_draws_the_same_whatever_follows_it() -> None:
    choice = Draw()
    three = texts(PALM, choice, [PROMPT] * 3)
    assert len(set(map(tuple, three))) == 3
    assert three[:1] == texts(PALM, choice, [PROMPT])
    assert three[:2] == texts(PALM, choice, [PROMPT, PROMPT, OTHERS[2]])[:2]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_mesh_writes_what_one_device_writes(choice: Choice) -> None:
    axes = (("fsdp", 2), ("seq", 2), ("tensor", 2))
    assert texts(LLAMA, choice, OTHERS, axes=axes) == texts(LLAMA, choice, OTHERS)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_token_is_one_compiled_step_whatever_the_position(choice: Choice) -> None:
    """Traces are counted: one to read the prompt, one to write, whatever comes and how long it is."""
    traced = []

    class Counted(type(choice)):  # type: ignore[misc]
        def choose(self, logits_RV: jax.Array, state: Any, stop_E: jax.Array) -> Any:
            traced.append(logits_RV.shape)
            return super().choose(logits_RV, state, stop_E)

    writer = Generator(program(PALM)[0], PALM, FP32, Counted(**vars(choice)))
    with on(ONE, UNSPLIT):
        for prompt in (PROMPT, OTHERS[0], OTHERS[2], [1] * SHORTEST):
            writer.write(program(PALM)[1], [prompt], 20, seed=len(prompt))
    assert len(traced) == 2


def test_prompts_are_padded_to_few_lengths() -> None:
    lengths = [padded(n) for n in range(1, 1025)]
    assert set(lengths) == {16, 32, 64, 128, 256, 512, 1024}
    assert all(n <= length for n, length in enumerate(lengths, 1))


def test_a_seed_writes_one_text_and_another_seed_another() -> None:
    written = [texts(PALM, Draw(), seed=seed) for seed in (0, 0, 1)]
    assert written[0] == written[1] != written[2]
    assert written[0] != texts(PALM, Greedy())


def test_each_token_is_a_draw_of_its_own() -> None:
    """So hot that all tokens are alike: 15 draws of 60 hit 13.4 different ones, give or take 1.1."""
    (ids,) = texts(PALM, Draw(temperature=1e6), tokens=15)
    assert len(set(ids)) >= 9
    assert all(0 <= i < V for i in ids)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_text_ends_with_the_first_stop_token(choice: Choice) -> None:
    (ids,) = texts(PALM, Greedy())
    stop = (ids[4], V - 1)
    (ended,) = texts(PALM, choice, stop=stop)
    assert len(ended) == TOKENS or ended[-1] in stop
    assert not set(ended[:-1]) & set(stop)
    if choice == Greedy():
        assert ended == ids[: ids.index(ids[4]) + 1]


def test_tokens_come_one_by_one_and_a_search_at_its_end() -> None:
    for choice, news in ((Greedy(), [1] * TOKENS), (Beam(beams=3), [0] * (TOKENS - 1) + [TOKENS])):
        with on(ONE, UNSPLIT):
            steps = list(generator(PALM, choice).stream(program(PALM)[1], [PROMPT], TOKENS))
        assert [len(ids) for (ids,) in steps] == news


@pytest.mark.parametrize("choice", [Greedy(), Beam(beams=3)])
def test_a_text_ends_where_the_model_has_no_more_positions(choice: Choice) -> None:
    assert GPT_2.max_context == 20
    long, short = texts(GPT_2, choice, [[1] * 17, PROMPT], tokens=7)
    assert (len(long), len(short)) == (3, 7)
    assert [long] == texts(GPT_2, choice, [[1] * 17], tokens=3)
    assert texts(GPT_2, choice, tokens=0) == [[]]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([PROMPT, []], r"prompt 2 is empty"),
        ([[1] * 20], r"prompt 1 has 20 tokens and the model 20 positions.*to 19 tokens or fewer"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_a_mistake(
    prompts: list[list[int]], words: str
) -> None:
    with pytest.raises(Mistake, match=words):
        texts(GPT_2, Greedy(), prompts)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"every": 0}, r"sample\.every is 0"),
        ({"tokens": -1}, r"sample\.tokens is -1"),
        (
            {"choice": Draw(temperature=-0.5)},
            r"sample\.choice\.temperature is -0\.5: make it more than 0",
        ),
        ({"choice": Draw(top_k=0)}, r"sample\.choice\.top_k is 0"),
        ({"choice": Draw(top_p=1.5)}, r"sample\.choice\.top_p is 1\.5"),
        ({"choice": Beam(beams=0)}, r"sample\.choice\.beams is 0"),
    ],
)
def test_a_sample_that_cannot_be_is_a_mistake(fields: dict[str, Any], words: str) -> None:
    Sample(every=1, tokens=0, choice=Greedy()).check()
    with pytest.raises(Mistake, match=words):
        Sample(**fields).check()
