"""`Run`, the root of every config, and every check that involves more than one of its fields."""

import math
from collections.abc import Iterator, Mapping

from pretrain import config
from pretrain.checkpoint import Checkpoint
from pretrain.config import Mistake, Node
from pretrain.data import Data
from pretrain.evaluate import Evaluate
from pretrain.forecast import Forecast
from pretrain.generate.sample import Sample
from pretrain.hooks import Profile
from pretrain.kernels.attention import Demand
from pretrain.models.model import Architecture, Compute, Decoder
from pretrain.objectives import NextToken
from pretrain.optim import Optimizer
from pretrain.parametrisation import Parametrisation, Standard
from pretrain.schedules import Ramp
from pretrain.sharding import AXES, Mesh, Rules


class Run(Node):
    """One training run: a model, what it reads, how it learns, and where."""

    model: Architecture  # the family and its sizes
    data: Data  # what it reads
    optim: Optimizer  # how it learns
    steps: int  # optimizer steps of the whole run
    batch: int  # sequences a step, over all devices
    seq_len: int  # tokens a sequence
    ramp: Ramp = Ramp()  # smaller batches for the first steps
    microbatches: int = 1  # parts of a batch that are computed one after another, to save memory
    objective: NextToken = NextToken()  # the loss
    compute: Compute = Compute()  # dtype, rematerialisation, attention kernel
    parametrisation: Parametrisation = (
        Standard()
    )  # what follows the size of the model: nothing, or MuP
    mesh: Mesh = Mesh()  # how many devices each mesh axis spans
    rules: Rules = Rules()  # which mesh axes split each logical axis
    checkpoint: Checkpoint = Checkpoint()  # when the state is saved
    evaluate: Evaluate = Evaluate()  # when the held-out loss is measured
    forecast: Forecast = Forecast()  # where a scaling law predicts that the held-out loss ends
    sample: Sample = Sample()  # what the model is asked to write
    profile: Profile = Profile()  # which steps the JAX profiler traces
    seed: int = 0  # of initialisation, data order and sampling
    log_every: int = 10  # steps between lines of metrics; the first step is always logged
    # compiled programs kept for the next start
    compile_cache: str | None = "~/.cache/pretrain/compile"

    def check(self) -> None:
        """Raises Mistake for the first field, or pair of fields, that cannot be. Needs no device."""
        config.check_types(self)
        for node, prefix, names in (
            (self, "", ("steps", "batch", "seq_len", "microbatches", "log_every")),
            (self.model, "model.", self.model.sizes),
        ):
            for name in names:
                if getattr(node, name) < 1:
                    raise Mistake(f"{prefix}{name} is {getattr(node, name)}: make it 1 or more.")
        if not 0 <= self.seed < 2**32:
            raise Mistake(f"seed is {self.seed}: make it 0 or more and less than 2^32.")
        self.model.check()
        self.data.check()
        self.ramp.check()
        self.optim.check(self.steps)
        self.checkpoint.check()
        self.sample.check()
        self.profile.check(self.steps)
        self.evaluate.check()
        self.forecast.check(self.data.held_out)
        longest = self.model.max_context
        if longest is not None and self.seq_len > longest:
            raise Mistake(
                f"seq_len is {self.seq_len} and model.context is {longest}: the model has no position "
                f"beyond, so make seq_len {longest} or less, or model.context {self.seq_len} or more."
            )
        if isinstance(self.model, Decoder) and self.model.heads % self.model.key_value_heads:
            raise Mistake(
                f"model.heads is {self.model.heads} and model.kv_heads is {self.model.key_value_heads}: "
                f"each key/value head serves equally many query heads, so make kv_heads one of "
                f"{divisors(self.model.heads)}."
            )
        for size in self.ramp.sizes(self.batch):
            if size % self.microbatches:
                raise Mistake(
                    f"batch is {size} and microbatches is {self.microbatches}: make microbatches one "
                    f"of {divisors(size)}, or batch a multiple of {self.microbatches}."
                )

    def check_layout(self, mesh: Mapping[str, int]) -> None:
        """Raises Mistake where the sizes of a run do not divide over the axes of this mesh."""
        model, rules = self.model, self.rules

        def parts(*names: str) -> int:
            axes = {axis for name in names for axis in getattr(rules, name)}
            return math.prod(mesh[axis] for axis in axes)

        def divides(field: str, value: int, row: str) -> None:
            if value % parts(row):
                axes = " x ".join(f"mesh.{axis}={mesh[axis]}" for axis in getattr(rules, row))
                raise Mistake(
                    f"{field} is {value} and rules.{row} splits it {parts(row)} ways ({axes}): make "
                    f"{field} a multiple of {parts(row)}, or the axes' product one of {divisors(value)}."
                )

        used = {axis for row in vars(rules).values() for axis in row}
        for axis in AXES:
            if mesh[axis] > 1 and axis not in used:
                raise Mistake(
                    f"mesh.{axis} is {mesh[axis]} and no row of rules names it, so its devices would "
                    f"all do the same: set mesh.{axis} to 1 or name it in rules."
                )
        for size in self.ramp.sizes(self.batch):
            divides("batch / microbatches", size // self.microbatches, "batch")
        for row in ("seq", "residual_seq", "kv_seq"):
            divides("seq_len", self.seq_len, row)
        for name, value, row in model.split:
            divides(f"model.{name}", value, row)
        padded = math.ceil(model.vocab / model.vocab_multiple) * model.vocab_multiple
        if padded % parts("vocab"):
            raise Mistake(
                f"model.vocab is {model.vocab}, padded to {padded} by model.vocab_multiple, and "
                f"rules.vocab splits it {parts('vocab')} ways: set model.vocab_multiple to a multiple of "
                f"{parts('vocab')}."
            )

    def check_kernel(self, mesh: Mapping[str, int], platform: str) -> None:
        """Raises Mistake where the attention kernel cannot do what the model asks of it there."""
        for demand in self.demands(mesh, platform):
            self.compute.attention.check(demand)

    def demands(self, mesh: Mapping[str, int], platform: str) -> Iterator[Demand]:
        """What the model asks of its attention kernel there, one for each mask of its layers."""
        if not isinstance(self.model, Decoder):
            return
        for mask in self.model.masks:
            yield Demand(
                positions=self.seq_len,
                heads=self.model.heads,
                kv_heads=self.model.key_value_heads,
                head_dim=self.model.head_dim,
                mask=mask,
                segments=self.data.mask_documents,
                dtype=self.compute.jnp_dtype,
                platform=platform,
                shards=math.prod(mesh[axis] for axis in self.rules.seq),
                dropout=self.model.dropout.attention,
            )


def load(name: str) -> Run:
    """The run of a config file. Raises Mistake where the file binds anything else."""
    run = config.load(name)
    if not isinstance(run, Run):
        raise Mistake(f"{name} binds `config` to a {type(run).__name__}: it must be a Run.")
    return run


def divisors(n: int) -> str:
    """The divisors of n in words, "1, 2, 4"."""
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
