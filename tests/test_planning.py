# ruff: noqa: E501 (lines of compiled programs)
"""Plans read from small pieces of compiled programs and from shapes: nothing is compiled here."""

import dataclasses
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain import config, flops
from pretrain.config import Mistake
from pretrain.kernels.mask import Causal
from pretrain.models.stack import Recompute
from pretrain.planning import collectives, cost, kernels, memory, search, topology
from pretrain.planning.hlo import Module, parsed, shapes
from pretrain.run import Run
from pretrain.sharding import Mesh, use

# A scan of 32 layers with a product, an asynchronous gather over half of it, and a kernel whose
# metadata has line breaks; the windowed product's counter goes by two.
PROGRAM = """HloModule jit_train_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%product (p0: bf16[8,1024], p1: bf16[1024,512]) -> bf16[8,512] {
  %p0 = bf16[8,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[1024,512]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %dot = bf16[8,512]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf, metadata={op_name="x"}
}

%condition (c: (s32[], bf16[8,1024])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[8,1024]{1,0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%c), index=0
  %limit = s32[]{:T(128)} constant(32)
  ROOT %less = pred[] compare(%count, %limit), direction=LT
}

%body (s: (s32[], bf16[8,1024])) -> (s32[], bf16[8,1024]) {
  %s = (s32[]{:T(128)}, bf16[8,1024]{1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = bf16[8,1024]{1,0} get-tuple-element(%s), index=1
  %one = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%n, %one)
  %shard = bf16[256,512]{1,0} fusion(%x), kind=kLoop, calls=%none, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %gather = (bf16[256,512]{1,0}, bf16[1024,512]{1,0}) all-gather-start(%shard), channel_id=7, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  %early = bf16[8,512]{1,0} fusion(%x, %w), kind=kOutput, calls=%product, metadata={op_name="jit(train_step)/jvp()/while/body/closed_call/BTD,DF->BTF/dot_general"}, backend_config={"window_config":{"estimated_cycles":"3000"}}
  %whole = bf16[1024,512]{1,0} all-gather-done(%gather)
  %kernel = (f32[4,1024,128]{2,1,0}, bf16[4,32,2048,128]{3,2,1,0}) custom-call(%x), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,2,2]{2,1,0}, bf16[4,32,2048,128]{3,2,1,0}, bf16[4,8,2048,128]{3,2,1,0}}, frontend_attributes={kernel_metadata={
"block_q": 1024
}}, metadata={op_name="jit(train_step)/jvp()/while/body/splash_mha_fwd_residuals/pallas_call"}
  ROOT %out = (s32[]{:T(128)}, bf16[8,1024]{1,0}) tuple(%next, %x)
}

ENTRY %main (w: bf16[1024,512]) -> f32[] {
  %w = bf16[1024,512]{1,0} parameter(0)
  %start = (s32[]{:T(128)}, bf16[8,1024]{1,0}) tuple(%w, %w)
  %loop = (s32[]{:T(128)}, bf16[8,1024]{1,0}) while(%start), condition=%condition, body=%body
  %sums = f32[1000,1000]{1,0} all-reduce(%w32), channel_id=9, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %done = f32[] constant(0)
}
"""


def program(step: int = 1) -> Module:
    text = PROGRAM.replace("STEP", str(step))
    return Module(text.replace("  %start = ", "  %w32 = f32[1000,1000]{1,0} copy(%w)\n  %start = "))


def llama() -> Run:
    return config.load("llama2_7b")


# --- reading --------------------------------------------------------------------------------------


def test_a_program_is_taken_apart_with_its_kernels_made_whole():
    module = program()
    assert module.entry == "main" and len(module.computations) == 5
    kernel = next(i for i in module.instructions("body") if i.name == "kernel")
    assert kernel.target == "tpu_custom_call" and kernel.op_name.endswith("pallas_call")
    early = next(i for i in module.instructions("body") if i.name == "early")
    assert (early.opcode, early.operands, early.cycles) == ("fusion", ("x", "w"), 3000)


@pytest.mark.parametrize(("step", "trips"), [(1, 32), (2, 16), (5, 7)])
def test_a_loop_runs_until_its_counter_meets_the_constant_of_its_condition(step, trips):
    module = program(step)
    loop = next(i for i in module.instructions("main") if i.opcode == "while")
    assert module.trips(loop) == trips


def test_a_loop_that_counts_to_nothing_known_is_refused():
    text = PROGRAM.replace("STEP", "1").replace("constant(32)", "parameter(1)")
    module = Module(text)
    loop = next(i for i in module.instructions("main") if i.opcode == "while")
    with pytest.raises(ValueError, match="no count to a constant"):
        module.trips(loop)


def test_the_shape_of_a_tuple_is_that_of_its_parts():
    found = shapes("(bf16[4,8]{1,0:T(8,128)(2,1)}, /*index=1*/f32[]{:T(128)}, token[])")
    assert found == [("bf16", (4, 8)), ("f32", ())]


def test_a_product_is_two_flops_for_each_pair_that_meets():
    module = program()
    early = next(i for i in module.instructions("body") if i.name == "early")
    assert module.flops(early) == 2 * 8 * 1024 * 512


def test_the_padding_of_a_window_is_no_work():
    """The TPU compiler writes "BTD,DNH->BTNH" as a convolution over N that meets one position each."""
    text = """ENTRY %main (x: bf16[4]) -> bf16[4] {
  %x = bf16[4,64,128,1]{2,1,3,0} parameter(0)
  %w = bf16[128,8,16,1]{0,2,1,3} parameter(1)
  ROOT %y = bf16[4,64,8,16]{3,1,2,0} convolution(%x, %w), window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
}
"""
    module = Module(text)
    assert module.flops(module.instructions("main")[-1]) == 2 * 4 * 64 * 128 * 8 * 16


def test_what_is_no_instruction_is_none():
    assert parsed("  %x = ") is None and parsed("// a comment") is None


# --- collectives and time -------------------------------------------------------------------------


def mesh(slices: int = 1) -> Any:
    """fsdp 4 x tensor 2 on a torus of 4 x 2 chips, twice where there are two slices."""
    devices = np.array(
        [
            SimpleNamespace(coords=(i, j, 0), slice_index=s)
            for s in range(slices)
            for i in range(4)
            for j in range(2)
        ]
    ).reshape(slices * 4, 2)
    return SimpleNamespace(devices=devices, axis_names=("fsdp", "tensor"))


V5P = topology.Topology(topology.chip("v5p"), (4, 2, 1))


@pytest.mark.parametrize(
    ("groups", "members", "axes"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", [0, 2, 4, 6], ("fsdp",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6], ("fsdp",)),
        ("replica_groups=[4,2]<=[8]", [0, 1], ("tensor",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [0, 2, 4, 6], ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", list(range(8)), ("fsdp", "tensor")),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", [0, 1], ("tensor",)),
        ("source_target_pairs={{0,2},{2,4}}", [0, 2], ("fsdp",)),
        ("source_target_pairs={{0,0},{2,4}}", [2, 4], ("fsdp",)),  # not what goes nowhere
    ],
)
def test_groups_of_every_notation_name_their_devices_and_mesh_axes(groups, members, axes):
    inner = parsed(f"  %x = f32[8]{{0}} all-gather(%y), channel_id=1, {groups}, dimensions={{0}}")
    assert inner is not None
    assert collectives.members(inner) == members
    assert collectives.axes(members, mesh()) == axes


def test_a_ring_uses_both_directions_and_a_line_one():
    devices = mesh().devices
    link = V5P.chip.link_bandwidth
    assert V5P.rate(devices[:, 0]) == 2 * link  # 4 chips, wired around
    assert V5P.rate(devices[0]) == link  # 2 chips are no ring
    assert V5P.rate(devices.reshape(-1)) == 3 * link


def test_a_reduction_takes_twice_a_gather_and_slices_add_the_network():
    devices = list(mesh().devices[:, 0])
    gather = collectives.seconds("all-gather", 8_000_000, devices, V5P)
    assert gather == pytest.approx(8e6 * 3 / 4 / (2 * V5P.chip.link_bandwidth))
    assert collectives.seconds("all-reduce", 8_000_000, devices, V5P) == pytest.approx(2 * gather)
    # Around a ring of 4 each device sends 2 MB by one link to either side, and 1 MB by two.
    every = collectives.seconds("all-to-all", 8_000_000, devices, V5P)
    assert every == pytest.approx((2e6 + 2 * 1e6) / V5P.chip.link_bandwidth)
    both = list(mesh(slices=2).devices[:, 0])
    across = collectives.seconds("all-gather", 8_000_000, both, V5P)
    network = (
        8e6 / 2 / 4 / V5P.chip.network_bandwidth
    )  # each chip brings a fourth of the other half
    assert across == pytest.approx(network + 8e6 * 7 / 8 / (2 * V5P.chip.link_bandwidth))
    assert collectives.seconds("all-gather", 8_000_000, devices[:1], V5P) == 0


def test_the_schedule_hides_a_collective_behind_what_stands_before_its_end():
    cycles = kernels.Cycles(V5P.chip.clock, lambda module, instruction: (10, 1e-6))
    found = cost.of(program(), mesh(), V5P, cycles)
    clock, link = V5P.chip.clock, V5P.chip.link_bandwidth
    assert found.fusions == pytest.approx(32 * 4000 / clock)
    assert found.kernels == pytest.approx(32e-6)
    assert found.flops == 32 * (2 * 8 * 1024 * 512 + 10)
    gather = 1024 * 512 * 2 * 3 / 4 / (2 * link)
    reduction = 2 * 4e6 * 3 / 4 / (2 * link)
    assert found.communication == pytest.approx(32 * gather + reduction)
    waits = 32 * max(0.0, gather - 3000 / clock)
    assert found.exposed == pytest.approx(waits + reduction)
    assert found.step == pytest.approx(found.compute + found.exposed)
    assert found.largest(1)[0][0] in found.by_name
    assert "forward BTD,DF->BTF/dot_general" in found.by_name


STARTS = """HloModule jit_train_step, is_scheduled=true

ENTRY %main (x: bf16[1024,512]) -> bf16[4096,512] {
  %x = bf16[1024,512]{1,0} parameter(0)
  %one-start = (bf16[1024,512]{1,0}, bf16[4096,512]{1,0}) all-gather-start(%x), channel_id=1, \
replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}
  %two-start = (bf16[1024,512]{1,0}, bf16[2048,512]{1,0}) all-gather-start(%x), channel_id=2, \
replica_groups=GROUPS, dimensions={0}
  %one = bf16[4096,512]{1,0} all-gather-done(%one-start)
  %two = bf16[2048,512]{1,0} all-gather-done(%two-start)
  ROOT %out = bf16[4096,512]{1,0} copy(%one)
}
""".replace("\\\n", "")


@pytest.mark.parametrize(
    ("groups", "queued"),
    [("{{0,1},{2,3},{4,5},{6,7}}", False), ("{{0,4},{1,5},{2,6},{3,7}}", True)],
)
def test_a_link_does_one_collective_at_a_time_and_two_links_two(groups, queued):
    cycles = kernels.Cycles(V5P.chip.clock, lambda module, instruction: (0, 0.0))
    found = cost.of(Module(STARTS.replace("GROUPS", groups)), mesh(), V5P, cycles)
    one, two = (each.seconds for each, _ in found.collectives)
    assert found.exposed == pytest.approx(one + two if queued else max(one, two))


def test_collectives_between_slices_take_the_network_until_they_are_received():
    host = (
        ', is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="a",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = f"""HloModule jit_train_step, is_scheduled=true

ENTRY %main (x: f32[1000]) -> f32[1000] {{
  %x = f32[1000]{{0}} parameter(0)
  %token = token[] after-all()
  %send = (f32[1000]{{0}}, u32[], token[]) send(%x, %token), channel_id=1{host}
  %recv = (f32[1000]{{0}}, u32[], token[]) recv(%token), channel_id=2{host}
  %send-done = token[] send-done(%send), channel_id=1
  %recv-done = (f32[1000]{{0}}, token[]) recv-done(%recv), channel_id=2
  ROOT %out = f32[1000]{{0}} get-tuple-element(%recv-done), index=0
}}
"""
    slices = replace(V5P, slices=2)
    cycles = kernels.Cycles(V5P.chip.clock, lambda module, instruction: (0, 0.0))
    found = cost.of(Module(text), mesh(slices=2), slices, cycles)
    ((between, times),) = found.collectives
    assert (between.kind, between.bytes, times) == ("all-reduce", 4000, 1)
    assert between.links == {"network"}
    assert found.exposed == pytest.approx(4000 / V5P.chip.network_bandwidth)


# A gather and a reduction that SparseCores run beside the TensorCore, as TPU 7x's compiler writes them.
SPARSECORES = """HloModule jit_train_step, is_scheduled=true

%called_computation.5 (param_0.1: bf16[64,1024], param_1.1: token[]) -> bf16[1024,1024] {
  %param_1.1 = token[] parameter(1)
  %param_0.1 = bf16[64,1024]{1,0:T(16,128)(2,1)} parameter(0)
  ROOT %all-gather.108 = bf16[1024,1024]{1,0:T(16,128)(2,1)} all-gather(%param_0.1), channel_id=57, replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(train_step)/jvp()/BTD,DF->BTF/dot_general"}, backend_config={"device_type":"DEVICE_TYPE_SPARSECORE"}
}, execution_thread="sparsecore"

%called_computation.19 (param_0.2: f32[1024,1024], param_1.2: token[]) -> f32[64,1024] {
  %param_1.2 = token[] parameter(1)
  %param_0.2 = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  ROOT %reduce-scatter.43 = f32[64,1024]{1,0:T(8,128)} reduce-scatter(%param_0.2), channel_id=17, replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, use_global_device_ids=true, dimensions={0}, to_apply=%add, backend_config={"ici_strategy_config":{"color_strategies":[{"phase_rings":[{"ring_type":"ICI_RING_TYPE_UNIDIR_CW","core_count":"16"}]},{"phase_rings":[{"ring_type":"ICI_RING_TYPE_UNIDIR_CCW","core_count":"16"}]}]}}
}, execution_thread="sparsecore"

ENTRY %main (w: bf16[64,1024], g: f32[1024,1024]) -> f32[64,1024] {
  %w = bf16[64,1024]{1,0:T(16,128)(2,1)} parameter(0)
  %g = f32[1024,1024]{1,0:T(8,128)} parameter(1)
  %prepare_start = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
  %ready = token[] custom-call(%prepare_start), custom_call_target="PrepareAsyncCallDone"
  %gather = ((bf16[64,1024]{1,0}, token[]), bf16[1024,1024]{1,0}) call-start(%w, %ready), async_execution_thread="sparsecore", to_apply=%called_computation.5, backend_config={"sparse_core_config":{"offload":"OFFLOAD_COLLECTIVE"}}
  %beside = f32[1024,1024]{1,0} fusion(%g), kind=kLoop, calls=%none, backend_config={"window_config":{"estimated_cycles":"2200"}}
  %whole = bf16[1024,1024]{1,0} call-done(%gather)
  %scatter = ((f32[1024,1024]{1,0}, token[]), f32[64,1024]{1,0}) call-start(%beside, %ready), async_execution_thread="sparsecore", to_apply=%called_computation.19
  ROOT %mine = f32[64,1024]{1,0} call-done(%scatter)
}
"""
TPU7X = topology.Topology(topology.chip("tpu7x"), (2, 2, 2))


def chiplets(layout: tuple[int, ...], axes: tuple[str, ...] = ("fsdp",)) -> Any:
    """A mesh over both devices of every chip, the devices of a chip beside each other."""
    found = [SimpleNamespace(coords=at, core=c) for at in np.ndindex(*layout) for c in (0, 1)]
    devices = np.array(found).reshape((-1, 2) if len(axes) == 2 else -1)
    return SimpleNamespace(devices=devices, axis_names=axes)


def test_what_sparsecores_run_is_counted_and_overlaps_until_it_is_done():
    module = Module(SPARSECORES)
    assert set(module.computations) == {"called_computation.5", "called_computation.19", "main"}
    cycles = kernels.Cycles(TPU7X.chip.clock, lambda module, instruction: (0, 0.0))
    found = cost.of(module, chiplets((2, 2, 2)), TPU7X, cycles)
    assert [(each.kind, each.axes, each.bytes, times) for each, times in found.collectives] == [
        ("all-gather", ("fsdp",), 1024 * 1024 * 2, 1),
        ("reduce-scatter", ("fsdp",), 1024 * 1024 * 4, 1),
    ]
    # Eight chips in a cube: each has a link in three dimensions, of which two rings use two at a time.
    gather, scatter = 2 * 2**20 * 7 / 8 / (3 * 90e9), 4 * 2**20 * 7 / 8 / (2 * 90e9)
    assert found.communication == pytest.approx(gather + scatter)
    assert found.exposed == pytest.approx(gather - 1e-6 + scatter)  # 2200 cycles at 2.2 GHz


@pytest.mark.parametrize("work", ["DATA_FORMATTING", "GATHER"])
def test_copies_of_sparsecores_are_counted_at_the_rate_of_memory(work):
    text = SPARSECORES.replace(" all-gather(", " copy(").replace(
        "OFFLOAD_COLLECTIVE", f"OFFLOAD_{work}"
    )
    cycles = kernels.Cycles(TPU7X.chip.clock, lambda module, instruction: (0, 0.0))
    found = cost.of(Module(text), chiplets((2, 2, 2)), TPU7X, cycles)
    copy = found.collectives[0][0]
    assert (copy.axes, copy.bytes, copy.links) == ((), 2 * 2**20, {"SparseCores"})
    assert copy.seconds == pytest.approx(2 * 2 * 2**20 / TPU7X.chip.hbm_bandwidth)


def test_what_sparsecores_run_and_is_no_collective_is_refused():
    module = Module(SPARSECORES.replace(" all-gather(", " sort("))
    cycles = kernels.Cycles(TPU7X.chip.clock, lambda module, instruction: (0, 0.0))
    with pytest.raises(ValueError, match="gather is run by a SparseCore and is no collective"):
        cost.of(module, chiplets((2, 2, 2)), TPU7X, cycles)


def test_devices_of_one_chip_share_its_links_and_exchange_on_it():
    target = topology.Topology(topology.chip("tpu7x"), (4, 1, 1))
    chips, size, link = chiplets((4, 1, 1), ("fsdp", "tensor")).devices, 8_000_000, 90e9
    ring = size * 3 / 4 / (2 * link)  # of four chips, wired around
    assert target.seconds("all-gather", size, chips.reshape(-1)) == pytest.approx(ring)
    assert target.seconds("all-gather", size, chips[:, 0]) == pytest.approx(2 * ring)
    assert target.seconds("all-gather", size, chips[0]) == pytest.approx(size / 2 / (6 * link))
    assert target.near(2) == 6 * link and target.near(1) == target.near(4) == 2 * link
    assert target.links(chips[0]) == {"chip"}
    assert target.links(chips[:, 0]) == {"dimension 0"}
    assert target.links(chips.reshape(-1)) == {"dimension 0", "chip"}
    # Of pairs that send to each other at once, those between chips take longest: both devices send.
    pairs = [chips[0], chips[:2, 0]]
    assert target.longest("collective-permute", size, pairs) == pytest.approx(2 * size / link)


def test_an_operation_is_named_by_its_direction_and_einsum():
    def named(path: str) -> str:
        instruction = parsed(f'  %x = f32[] add(%y), metadata={{op_name="{path}"}}')
        assert instruction is not None
        return cost.operation(instruction)

    assert named("jit(train_step)/jvp()/while/body/BTD,DF->BTF/dot_general").startswith("forward")
    assert named("jit(t)/transpose(jvp())/while/body/checkpoint/mul") == "backward mul"
    assert named("jit(t)/transpose(jvp())/rematted_computation/mul") == "again forward mul"
    assert named("jit(t)/sqrt") == "update sqrt"


def test_a_causal_mask_of_two_tiles_visits_three_of_four():
    assert kernels.visited(Causal(), 2048, 1024) == 3 / 4
    assert kernels.visited(Causal(), 2048, 4096) == 1
    assert kernels.visited(Causal(window=1), 2048, 512) == 4 / 16


def test_the_splash_kernels_cost_their_products():
    run = replace(llama(), seq_len=2048)
    kernel = next(i for i in program().instructions("body") if i.name == "kernel")
    flops, seconds = kernels.splash(run, peak=1e12)(program(), kernel)
    assert flops == 2 * 2 * (4 * 32 * 2048 * 128) * 2048 * 3 / 4
    assert seconds == flops / (kernels.EFFICIENCY * 1e12)


# --- topologies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("v4:16x16x12", (16, 16, 12)),
        ("v5p:64", (4, 4, 4)),
        ("v5p:512", (8, 8, 8)),
        ("v5e:256", (16, 16)),
        ("v4:3072", (12, 16, 16)),
        ("v6e:8", (2, 4)),
        ("tpu7x:4x4x8", (4, 4, 8)),
        ("tpu7x:64", (4, 4, 4)),
    ],
)
def test_a_topology_is_a_layout_or_a_number_of_chips(text, layout):
    assert topology.parse(text).layout == layout
    assert topology.parse(text, slices=2).chips == 2 * np.prod(layout)


@pytest.mark.parametrize(
    ("text", "slices", "words"),
    [
        ("v9:4x4", 1, "names the chip 'v9'"),
        ("v5e", 1, "gives no size: write v5e:4x4"),
        ("v5e:4x4x4", 1, "has 3 dimensions and a v5e slice has 2"),
        ("v5p:63", 1, "no v5p slice has 63 chips; the nearest have 16, 32, 64, 128"),
        ("v5e:32x32", 1, "larger than the largest slice, v5e:16x16"),
        ("v5e:4x4", 0, "--slices is 0"),
    ],
)
def test_a_topology_that_does_not_exist_is_a_mistake(text, slices, words):
    with pytest.raises(Mistake, match=words):
        topology.parse(text, slices)


def test_a_chip_of_tpu7x_is_two_devices():
    target = topology.parse("tpu7x:64")
    assert (target.chips, target.size) == (64, 128)
    # 2307 TFLOP/s and 192 GB, of which a program gets 189.5 GiB.
    assert (flops.peak_flops(target.chip.kind) or 0) * target.size == 64 * 2307e12
    assert 2 * target.limit == 189.5 * 2**30


def test_without_its_compiler_a_topology_is_a_mistake(monkeypatch):
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    with pytest.raises(Mistake, match=r"pip install 'pretrain\[tpu\]' brings libtpu"):
        topology.parse("v5e:2x2").devices()


# --- memory ---------------------------------------------------------------------------------------


def test_what_is_kept_for_the_backward_pass_is_counted_by_hand():
    run = replace(llama(), batch=1024, seq_len=2048, mesh=Mesh(fsdp=64, tensor=4))
    save = ("query", "key", "mlp_up")
    run = replace(run, compute=replace(run.compute, remat=Recompute(save=save)))
    with use(run.mesh.abstract(256), run.rules):
        rows = 1024 // 64
        residual = rows * 2048 * 4096 * 2
        heads, ff = rows * 2048 * (32 // 4) * 128 * 2, rows * 2048 * (11_008 // 4) * 2
        assert memory.kept(run) == 32 * (residual + 2 * heads + ff)


MESSAGE = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.20G of 15.75G hbm. \
Exceeded hbm capacity by 7.45G.

  Largest program allocations in hbm:

  1. Size: 4.00G
     Operator: op_name="jit(train_step)/jvp()/while/body/dynamic_update_slice"
     Shape: bf16[32,4,2048,8192]{3,2,1,0:T(8,128)(2,1)}
     XLA label: fusion.1
     Allocation type: HLO temp
     ==========================

  2. Size: 512.0M
     Shape: f32[128,1024,1024]{2,1,0:T(8,128)}
     XLA label: copy.7
     Allocation type: HLO temp
     ==========================
"""


def test_the_compilers_complaint_is_read_to_the_byte():
    found = memory.excess(MESSAGE)
    assert found is not None
    assert (found.used, found.limit) == (math.ceil(23.2 * 2**30), round(15.75 * 2**30))
    assert found.over == found.used - found.limit
    first, second = found.largest
    assert (first.bytes, memory.held(first.shape)) == (2**32, 2**32)
    assert first.op_name == "jit(train_step)/jvp()/while/body/dynamic_update_slice"
    assert (second.bytes, second.op_name) == (2**29, "copy.7")
    early = memory.excess("for HLO temporaries (739.01G) exceeds available HBM (15.75G).")
    assert early is not None
    assert early.over == math.ceil(739.01 * 2**30) - round(15.75 * 2**30)
    assert memory.excess("INVALID_ARGUMENT: something else") is None


def test_a_program_that_counts_more_than_there_is_does_not_fit():
    text = PROGRAM.replace("STEP", "1")
    assert memory.beyond(100, 100, text) is None
    found = memory.beyond(130, 100, text)
    assert found is not None and found.over == 30
    assert found.largest[0].shape == "bf16[4,32,2048,128]"
    assert found.largest[0].bytes == 2 * 4 * 32 * 2048 * 128


# --- search ---------------------------------------------------------------------------------------


def test_the_search_ranks_layouts_that_divide_and_fit():
    run = replace(llama(), batch=1024, seq_len=2048)
    target = topology.parse("v5e:256")
    found = search.ranked(run, target)
    assert [g.seconds for g in found] == sorted(g.seconds for g in found)
    for guess in found:
        guess.run.check_layout(guess.run.mesh.sizes(256))
        assert guess.bytes < target.chip.hbm_bytes


def test_what_frees_too_little_is_not_tried():
    run = replace(llama(), batch=1024, seq_len=2048)
    save = ("query", "key", "value", "attention")
    run = replace(run, compute=replace(run.compute, remat=Recompute(save=save)))
    laid = run.mesh.abstract(256)
    with use(laid, run.rules):
        now = memory.kept(run)
    assert now is not None
    for _, changed in search.smaller(run, laid, over=now // 2):
        with use(laid, run.rules):
            assert (memory.kept(changed) or 0) <= now - now // 2
    words = [words for words, _ in search.smaller(run, laid, over=1)]
    assert len(words) == 3 and "microbatches 1" in words[0]


def test_the_config_that_is_found_differs_only_in_what_was_found(tmp_path):
    run = llama()
    found = replace(
        run, mesh=Mesh(fsdp=8, tensor=2), microbatches=2,
        compute=replace(run.compute, remat=Recompute(save=("query",))),
    )  # fmt: skip
    path = tmp_path / "found.py"
    search.write(run, found, "llama2_7b.py", "v5e:16", path)
    assert config.load(str(path)) == found
    changed = {f.name for f in dataclasses.fields(run) if f"    {f.name}=" in path.read_text()}
    assert changed == {"mesh", "microbatches", "compute"}
