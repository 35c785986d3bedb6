"""Properties of the normalisations and of the MaxNorm projection, and values worked by hand."""

import pytest
import torch
from elsewhere import no_float64
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ltr.regularizers import L2Norm, MaxNorm, max_norm_project, relative_radius, row_norms, tau_normalize

# eighths are exact in float32, so a row of zeros is really zero and nothing underflows
entries = st.integers(-800, 800).map(lambda eighths: eighths / 8)
radii = st.floats(0, 500, width=32, allow_subnormal=False)


@st.composite
def matrices(draw):
    """Weights [C, D], now and then with rows of zeros."""
    width = draw(st.integers(1, 6))
    rows = st.one_of(st.just([0.0] * width), st.lists(entries, min_size=width, max_size=width))
    return torch.tensor(draw(st.lists(rows, min_size=1, max_size=6)))


def test_row_norms_by_hand():
    assert row_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1.0, 0.0]])).tolist() == [5, 0, 1]


@given(st.integers(0, 2**32), st.floats(-14, 14))
def test_row_norms_of_ordinary_rows_are_torchs_to_the_bit(seed, power):
    weight = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(seed)) * 10**power
    expected = torch.linalg.vector_norm(weight, dim=-1)
    assert torch.equal(row_norms(weight), expected)
    assert torch.equal(row_norms(torch.cat([weight, torch.zeros(1, 5, 64)]))[:3], expected)  # zeros take the other way
    with no_float64() as device:
        assert torch.equal(row_norms(weight.to(device)).cpu(), expected)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e-23, 1e-15, 1.0, 1e15, 1e20, 1e30, 1e37])
def test_row_norms_neither_under_nor_overflow(size):
    # squares are beyond float32 below 1e-23 and above 1e19
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -5.0]]) * size
    few_bits = 1e-4 if size < 1e-37 else 1e-6
    assert row_norms(weight).tolist() == pytest.approx([5 * size, 0, 5 * size], rel=few_bits, abs=0)


def test_row_norms_of_rows_of_all_sizes_at_once():
    sizes = torch.tensor([1e-30, 1e-5, 0.0, 1.0, 1e25])
    torch.testing.assert_close(row_norms(sizes[:, None] * torch.tensor([3.0, 4.0])), 5 * sizes, atol=0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_row_norms_of_half_precision_are_float32(dtype):
    # 40,000 is a number of float16; the norm of two of them is not
    norms = row_norms(torch.full((1, 4), 40_000.0, dtype=dtype))
    assert norms.dtype == torch.float32
    assert norms.tolist() == pytest.approx([80_000], rel=1e-2)


@pytest.mark.parametrize("size", [1e-40, 1e-23, 1e-12, 1e20, 1e37])
def test_rows_of_any_size_come_to_the_unit_sphere_and_to_the_ball(size):
    weight = torch.full((2, 16), size)
    weight[1, ::2] *= -1
    torch.testing.assert_close(
        tau_normalize(weight, 1.0), weight.sign() / 4, atol=0, rtol=1e-4 if size < 1e-37 else 1e-6
    )
    sphere = weight.clone()
    L2Norm().apply(sphere)
    assert torch.equal(sphere, tau_normalize(weight, 1.0))
    projected, ball = weight.clone(), MaxNorm(0.5)
    ball.apply(projected)
    torch.testing.assert_close(projected, weight.sign() / 8 if size > 1 else weight, atol=0, rtol=1e-6)
    assert int(ball.projected) == (2 if size > 1 else 0)


@pytest.mark.parametrize(("size", "tau"), [(1e-23, 1.9), (1e-15, 3.0), (1e25, 1.9), (1e-40, 1.5)])
def test_rows_of_any_size_keep_what_tau_leaves_of_their_norm(size, tau):
    # norm ** -tau itself is beyond float32
    weight = tau_normalize(torch.tensor([[0.6, 0.8]]) * size, tau)
    assert row_norms(weight).tolist() == pytest.approx([size ** (1 - tau)], rel=1e-3, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("constraint", [MaxNorm(1.0), L2Norm()])
def test_rows_of_half_precision_stay_in_the_ball_and_are_counted_once(dtype, constraint):
    weight = (0.3 * torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    weight[0] = 0
    constraint.apply(weight)
    assert int(constraint.projected) > 1900
    moved = int(constraint.projected)
    constraint.apply(weight)
    assert int(constraint.projected) == moved
    assert (row_norms(weight) <= (1.0 if isinstance(constraint, MaxNorm) else 1.01)).all()


def test_projection_has_a_gradient_at_a_row_of_zeros():
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    max_norm_project(weight, 1.0).sum().backward()
    assert weight.grad.isfinite().all()
    assert weight.grad[0].tolist() == [1, 1]


def test_projection_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(max_norm_project(weight, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_projection_takes_a_radius_for_each_row():
    projected = max_norm_project(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([10.0, 2.5]))
    assert projected.tolist() == [[3, 4], [1.5, 2]]


@given(matrices(), radii)
def test_projection_satisfies_the_constraint_along_the_same_direction(weight, radius):
    projected = max_norm_project(weight, radius)
    norms = row_norms(weight)
    torch.testing.assert_close(row_norms(projected), norms.clamp_max(radius))
    torch.testing.assert_close(projected * norms[:, None], weight * row_norms(projected)[:, None])


@given(matrices(), radii)
def test_projection_is_idempotent(weight, radius):
    once = max_norm_project(weight, radius)
    torch.testing.assert_close(max_norm_project(once, radius), once)


@given(matrices(), radii)
def test_projection_leaves_rows_inside_as_they_are(weight, radius):
    inside = row_norms(weight) <= radius
    assert torch.equal(max_norm_project(weight, radius)[inside], weight[inside])


@given(matrices())
def test_projection_to_radius_zero_gives_zeros(weight):
    assert torch.equal(max_norm_project(weight, 0.0), torch.zeros_like(weight))  # NaN would not be equal


def test_tau_normalize_by_hand():
    # norm 5: divided by 25 with tau 2, by the root of 5 with tau 1/2
    weight = torch.tensor([[3.0, 4.0]])
    assert tau_normalize(weight, 2).tolist()[0] == pytest.approx([0.12, 0.16])
    assert tau_normalize(weight, 0.5).tolist()[0] == pytest.approx([3 / 5**0.5, 4 / 5**0.5])


@given(matrices())
def test_tau_zero_changes_nothing(weight):
    assert torch.equal(tau_normalize(weight, 0), weight)


@given(matrices())
def test_tau_one_gives_unit_rows_and_keeps_rows_of_zeros(weight):
    normalized = tau_normalize(weight, 1)
    torch.testing.assert_close(row_norms(normalized), (row_norms(weight) > 0).float())
    torch.testing.assert_close(normalized * row_norms(weight)[:, None], weight)


def test_relative_radius_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])  # norms 5, 1, 2
    assert relative_radius(weight, 0.1) == pytest.approx(1.4)
    assert [relative_radius(weight, fraction) for fraction in (0, 1)] == [1, 5]


def test_max_norm_projects_in_place_and_counts():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]]))
    memory, max_norm = weight.data_ptr(), MaxNorm(2.5)
    assert max_norm.projected_share == 0
    max_norm.apply(weight)
    assert weight.data_ptr() == memory
    torch.testing.assert_close(weight.data, torch.tensor([[1.5, 2.0], [0.6, 0.8], [0.0, 0.0]]))
    assert (int(max_norm.projected), max_norm.checked) == (1, 3)
    max_norm.apply(weight)  # the first row now lies exactly on the ball, so nothing fires
    assert (int(max_norm.projected), max_norm.checked) == (1, 6)
    assert max_norm.projected_share == pytest.approx(1 / 6)


def test_max_norms_count_separately():
    first, second = MaxNorm(1.0), MaxNorm(1.0)
    first.apply(torch.ones(4, 4))
    assert (int(first.projected), int(second.projected), second.checked) == (4, 0, 0)


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_max_norm_accepts_both_intervals(every):
    assert MaxNorm(1.0, every).every == every


@pytest.mark.parametrize(
    ("arguments", "named"), [({"radius": -1.0}, "radius"), ({"radius": 1.0, "every": "batch"}, "every")]
)
def test_max_norm_refuses_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        MaxNorm(**arguments)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (8, 3, 3, 3)])
@pytest.mark.parametrize("constraint", [MaxNorm(0.5), L2Norm()], ids=["MaxNorm", "L2Norm"])
def test_a_constraint_refuses_what_is_no_matrix_of_rows(constraint, shape):
    weight = torch.ones(shape)
    with pytest.raises(ValueError, match="^weight: .*got \\["):
        constraint.apply(weight)
    assert (weight == 1).all()
    assert int(constraint.checked) == int(constraint.projected) == 0


@pytest.mark.parametrize("make", [lambda: MaxNorm(0.5), L2Norm])
def test_constraints_need_no_float64_on_the_device_of_the_weights(make):
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    here, constraint = weight.clone(), make()
    constraint.apply(here)
    with no_float64() as device:
        there, other = weight.to(device), make().to(device)
        other.apply(there)
        assert torch.equal(there.cpu(), here)
        assert other.projected_share == constraint.projected_share


@given(matrices())
def test_the_l2_constraint_is_l2_normalisation_and_counts_rows_that_move(weight):
    norms, sphere = row_norms(weight), L2Norm()
    expected = tau_normalize(weight, 1.0)
    sphere.apply(weight)
    assert torch.equal(weight, expected)
    assert int(sphere.projected) == int((((norms - 1).abs() > 1e-6) & (norms > 0)).sum())
    assert int(sphere.checked) == len(weight)
