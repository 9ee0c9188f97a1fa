"""Work and traffic of programs, against what can be counted by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mecap_jax.models.fused_attention import splash_prompt
from mecap_jax.planning.counting import collective_bytes, matmul_flops


def flops(function, *arguments, trips=1):
    return matmul_flops(jax.jit(function).trace(*arguments).jaxpr, trips)


A, B = jnp.ones((3, 5, 7)), jnp.ones((3, 7, 11))
PRODUCT = 2 * 3 * 5 * 7 * 11


def test_products_and_convolutions_by_hand():
    assert flops(lambda a, b: a @ b, A, B) == PRODUCT
    assert flops(lambda a: jnp.einsum("bij,bkj->bik", a, a), A) == 2 * 3 * 5 * 5 * 7
    signal, kernel = jnp.ones((2, 6, 20)), jnp.ones((4, 6, 3))  # [B, C, T], [out, in, width]
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (2,), "VALID")  # noqa: E731
    assert flops(convolve, signal, kernel) == 2 * (2 * 4 * 9) * (6 * 3)
    depthwise = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "VALID", feature_group_count=6)  # noqa: E731
    assert flops(depthwise, signal, jnp.ones((6, 1, 3))) == 2 * (2 * 6 * 18) * 3
    assert flops(lambda a: a + jnp.sum(a), A) == 0


def test_a_kernel_counts_as_often_as_its_grid_has_places():
    q, k = (jax.ShapeDtypeStruct((2, 256, heads, 128), jnp.bfloat16) for heads in (4, 2))
    attention = functools.partial(splash_prompt, mesh=None)
    assert flops(attention, q, k, k) == 2 * (2 * 2 * 4 * 256 * 256 * 128)  # logits and values, blocks in the future too


def test_loops_count_as_often_as_they_run_and_branches_once():
    square = jnp.ones((4, 4))

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, length=9)[0]

    def looped(x):
        return jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ x, x)

    def chosen(x):
        return jax.lax.cond(x[0, 0] > 0, lambda c: c @ c @ c, lambda c: c @ c, x)

    assert flops(scanned, square) == 9 * 128
    assert flops(looped, square, trips=6) == 6 * 128
    assert flops(chosen, square) == 2 * 128
    assert flops(lambda x: scanned(looped(x)), square, trips=2) == 11 * 128


def test_what_is_computed_again_counts_again():
    def loss(a, remat):
        run = lambda x: jnp.sin(x @ B) @ B.swapaxes(1, 2)  # noqa: E731
        return jnp.sum((jax.checkpoint(run) if remat else run)(a) ** 2)

    plain, again = (flops(jax.grad(lambda a, r=remat: loss(a, r)), A) for remat in (False, True))
    assert plain == 4 * PRODUCT and again == 5 * PRODUCT


WHOLE, WHOLE_SPEC = 64 * 64 * 4, PartitionSpec()


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def compiled(function, mesh, spec, out=WHOLE_SPEC):
    """The text of a program whose argument, float32 [64, 64], is divided by `spec`."""
    argument = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, spec))
    return jax.jit(function, out_shardings=NamedSharding(mesh, out)).lower(argument).compile().as_text()


def test_collectives_of_compiled_programs(mesh):
    rows, columns = PartitionSpec("x"), PartitionSpec(None, "x")
    assert collective_bytes(compiled(lambda x: x + 1, mesh, rows, rows)) == {}
    assert collective_bytes(compiled(lambda x: x, mesh, rows)) == {"all-gather": WHOLE * 7 / 8}
    assert collective_bytes(compiled(lambda x: jnp.sum(x, axis=0), mesh, rows)) == {"all-reduce": 2 * 64 * 4 * 7 / 8}
    (moved,) = collective_bytes(compiled(lambda x: x, mesh, rows, columns)).values()
    assert moved == WHOLE / 8 * 7 / 8


def test_collectives_within_loops_count_as_often_as_the_loops_run(mesh):
    def step(x):
        whole = jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, PartitionSpec()))
        return jax.lax.with_sharding_constraint(whole @ whole, NamedSharding(mesh, PartitionSpec("x")))

    def scanned(x):
        return jax.lax.scan(lambda c, _: (step(c), None), x, length=5)[0]

    def looped(x):
        return jax.lax.while_loop(lambda c: c[0, 0] > 0, step, x)

    rows = PartitionSpec("x")
    once = collective_bytes(compiled(step, mesh, rows, rows))["all-gather"]
    assert once == WHOLE * 7 / 8
    assert collective_bytes(compiled(scanned, mesh, rows, rows))["all-gather"] == 5 * once
    assert collective_bytes(compiled(looped, mesh, rows, rows), trips=3)["all-gather"] == 3 * once


def test_collectives_as_a_tpu_compiler_writes_them():
    text = """HloModule jit_f

%async_computation (param: bf16[16,128]) -> bf16[64,128] {
  %param = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gathered = bf16[64,128]{1,0} all-gather(%param), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (p: bf16[16,128], q: f32[32]) -> f32[8] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %q = f32[32]{0:T(256)} parameter(1)
  %s = (bf16[16,128]{1,0:T(8,128)}, bf16[64,128]{1,0}, u32[]{:S(2)}) all-gather-start(%p), replica_groups={{0,1,2,3}}
  %d = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather-done(%s)
  %w = ((bf16[16,128]), bf16[64,128], s32[]) async-start(%p), calls=%async_computation
  %v = bf16[64,128] fusion(%w), kind=kOutput, calls=%async_computation
  %r = f32[32]{0:T(256)} all-reduce(%q), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %c = f32[8]{0:T(256)} reduce-scatter(%r), replica_groups=[1,4]<=[4], to_apply=%add
}
"""
    gathered = 64 * 128 * 2 * 3 / 4
    assert collective_bytes(text) == {
        "all-gather": 2 * gathered, "all-reduce": 2 * 128 / 2, "reduce-scatter": 128 * 3 / 4
    }  # fmt: skip
    assert np.isclose(sum(collective_bytes(text).values()), 2 * gathered + 128 + 96)


@pytest.mark.parametrize(
    "groups, size",
    [
        ("{{0,1,4,5},{2,3,6,7}}", 4),
        ("[4,2]<=[8]", 2),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0'}", 4),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_0','axis_2'}", 8),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}", 2),
        ("mesh['axis_0'=8], device_ids=([8]) {'axis_0':(1)4}", 4),
    ],
)
def test_groups_in_all_their_spellings(groups, size):
    line = f"  ROOT %g = f32[64]{{0}} all-gather(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    text = "ENTRY %main (p: f32[8]) -> f32[64] {\n" + line + "\n}\n"
    assert collective_bytes(text) == {"all-gather": 256 * (size - 1) / size}
