"""Projections: against convex solvers in few dimensions, against pyautoattack in many, and at every edge."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import L1_projection
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from scipy.optimize import linprog, minimize

from dkl.attacks.projections import hyperplane_l1, hyperplane_l2, hyperplane_linf, l1_ball

HYPERPLANES = {"Linf": hyperplane_linf, "L2": hyperplane_l2, "L1": hyperplane_l1}
ORDER = {"Linf": float("inf"), "L2": 2, "L1": 1}
NORMS = list(HYPERPLANES)

quick = settings(max_examples=60, deadline=None, derandomize=True)
pixel = st.sampled_from([0.0, 1.0, 0.5, 1e-3, 1 - 1e-3]) | st.floats(0, 1)
weight = st.sampled_from([0.0, 1.0, -1.0, 1e-3]) | st.floats(-3, 3).filter(lambda w: w == 0 or abs(w) > 1e-3)


@st.composite
def planes(draw):
    """t, w, c in few dimensions; of the planes about a third misses the box."""
    n = draw(st.integers(1, 5))
    t = np.array(draw(st.lists(pixel, min_size=n, max_size=n)))
    w = np.array(draw(st.lists(weight, min_size=n, max_size=n)))
    c = draw(st.sampled_from([0.0, 1e-3]) | st.floats(-4, 4))
    return t, w, c


def project(norm, t, w, c, dtype=torch.float64):
    t, w, c = (torch.as_tensor(v, dtype=dtype) for v in (t, w, c))
    return HYPERPLANES[norm](t[None], w[None], c[None])[0].double().numpy()


def reach(t, w, c):
    """How far |<w, t + d> + c| can be lowered inside the box, and the corner where that is."""
    d = np.where(w * c > 0, -t, np.where(w * c < 0, 1 - t, 0.0))
    return abs(w @ d), d


def least_norm(norm, t, w, c):
    """The least norm of a step onto the plane inside the box, by a solver without the closed form."""
    n = len(t)
    low, high = -t, 1 - t
    match norm:
        case "Linf":  # min s over (d, s) with |d_i| <= s
            one, column = np.eye(n), np.ones((n, 1))
            result = linprog(
                np.r_[np.zeros(n), 1],
                A_ub=np.block([[one, -column], [-one, -column]]),
                b_ub=np.zeros(2 * n),
                A_eq=np.r_[w, 0][None],
                b_eq=[-c],
                bounds=[*zip(low, high, strict=True), (0, None)],
            )
        case "L1":  # min sum p + q, d = p - q
            result = linprog(
                np.ones(2 * n),
                A_eq=np.r_[w, -w][None],
                b_eq=[-c],
                bounds=[*((0, h) for h in high), *((0, -v) for v in low)],
            )
        case "L2":
            return _least_l2(w, c, low, high)
    assert result.status == 0, result.message
    return result.fun


def _least_l2(w, c, low, high):
    """max over the plane's multiplier of a concave function: the dual, by ternary search in float64."""

    def dual(multiplier):
        d = np.clip(-multiplier * w, low, high)
        return d @ d / 2 + multiplier * (w @ d + c)

    left, right = -1e5, 1e5
    for _ in range(200):
        a, b = left + (right - left) / 3, right - (right - left) / 3
        left, right = (a, right) if dual(a) < dual(b) else (left, b)
    return np.sqrt(max(2 * dual((left + right) / 2), 0))


# --- onto a plane, inside the box --------------------------------------------------------------------------


@quick
@given(planes(), st.sampled_from(NORMS))
@example((np.array([0.5, 0.5]), np.array([1.0, 1.0]), 0.0), "L2")
@example((np.array([0.5, 0.5]), np.array([0.0, 0.0]), 1.0), "L2")
@example((np.array([0.0, 1.0]), np.array([1.0, -1.0]), 1.0), "Linf")  # both pixels already at their side
@example((np.array([0.25, 0.5]), np.array([1.0, 1.0]), 0.75), "L1")  # exactly the corner
def test_planes_against_convex_solvers(plane, norm):
    t, w, c = plane
    d = project(norm, t, w, c)
    assert np.isfinite(d).all()
    assert (t + d >= -1e-12).all()
    assert (t + d <= 1 + 1e-12).all()
    farthest, corner = reach(t, w, c)
    if farthest <= abs(c):
        np.testing.assert_allclose(d, corner, atol=1e-9)
        return
    assume(farthest > abs(c) * (1 + 1e-9))
    assert abs(w @ d + c) <= 1e-9
    assert np.linalg.norm(d, ORDER[norm]) == pytest.approx(least_norm(norm, t, w, c), abs=2e-6, rel=2e-6)


@quick
@given(planes(), st.sampled_from(NORMS))
def test_planes_in_float32(plane, norm):
    t, w, c = (np.asarray(v, dtype=np.float32) for v in plane)
    assume(((w == 0) | (abs(w) > 1e-7)).all())
    farthest, _ = reach(t.astype(float), w.astype(float), float(c))
    assume(abs(farthest / max(abs(float(c)), 1e-9) - 1) > 1e-4)
    narrow, wide = project(norm, t, w, c, torch.float32), project(norm, t, w, c)
    assert (t + narrow.astype(np.float32) >= 0).all()
    assert (t + narrow.astype(np.float32) <= 1).all()
    assert abs(w @ (narrow - wide)) <= 4e-6 * (1 + abs(w).sum())
    if norm != "L1":  # under L1 pixels of equal weight may share the way in any proportion
        np.testing.assert_allclose(narrow, wide, atol=1e-4)
    assert np.linalg.norm(narrow, ORDER[norm]) == pytest.approx(np.linalg.norm(wide, ORDER[norm]), abs=1e-4)


def rows(count=24, n=300, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    t = torch.rand(count, n, generator=g, dtype=dtype)
    w = torch.randn(count, n, generator=g, dtype=dtype)
    c = torch.randn(count, generator=g, dtype=dtype) * w.abs().sum(dim=1) / 6
    return t, w, c


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-3, 1.0, 1e3, 1e8])
def test_the_scale_of_the_plane_does_not_matter(norm, dtype, scale):
    t, w, c = rows(dtype=dtype)
    w = torch.where(w.abs() < 1e-3, 0, w)
    if norm != "Linf":
        scale = max(scale, 1e-4)  # AutoAttack takes weights below 1e-8 for zero
    d, same = HYPERPLANES[norm](t, w * scale, c * scale), HYPERPLANES[norm](t, w, c)
    assert d.dtype == dtype
    torch.testing.assert_close(d, same, rtol=1e-4, atol=2e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("w", [0.0, 1e-30, 1e-12, 1e-8, 1e-4, 1.0, 1e8, 1e15])
@pytest.mark.parametrize("c", [0.0, 1e-30, 1e-6, 1.0, -1.0, 1e3, 1e12])
def test_extremes_give_no_nan_and_stay_in_the_box(norm, dtype, w, c):
    t = torch.tensor([[0.0, 0.5, 1.0, 0.3, 1e-7, 1 - 6e-8]], dtype=dtype)
    signs = torch.tensor([[1.0, -1.0, 1.0, 0.0, -1.0, 1.0]], dtype=dtype)
    spread = torch.tensor([[1.0, 1e-4, 1.0, 1.0, 1e3, 1e-2]], dtype=dtype)
    for weights in (w * signs, w * signs * spread, w * torch.zeros_like(signs)):
        d = HYPERPLANES[norm](t, weights, torch.tensor([c], dtype=dtype))
        assert d.isfinite().all()
        assert (t + d >= 0).all()
        assert (t + d <= 1).all()
        assert (d[weights == 0] == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_through_the_point_is_where_it_is(norm):
    t, w, _ = rows()
    assert (HYPERPLANES[norm](t, w, torch.zeros(len(t))) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_beyond_the_box_is_its_corner(norm):
    t, w, _ = rows()
    for sign in (1, -1):
        d = HYPERPLANES[norm](t, w, sign * 2 * w.abs().sum(dim=1))
        assert torch.equal((t + d).round(decimals=5), (sign * w < 0).float())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tail", [1, 3, 6])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_weights_of_many_sizes_are_projected_exactly(norm, tail, share):
    """Gradients have heavy tails; the steps of the solver must be enough for them, too.

    Close to the corner, where hardly a pixel is free, L2 may miss a hundred-thousandth of the way.
    """
    g = torch.Generator().manual_seed(tail)
    t = torch.rand(16, 768, generator=g, dtype=torch.float64)
    w = torch.randn(16, 768, generator=g, dtype=torch.float64)
    w = w.sign() * 10 ** (-tail * torch.rand(16, 768, generator=g, dtype=torch.float64)) * w.abs().clamp_min(0.01)
    room = torch.where(w > 0, t, 1 - t)
    c = share * (w.abs() * room).sum(dim=1)
    for dtype, digits in ((torch.float64, 1e-9), (torch.float32, 2e-6)):
        d = HYPERPLANES[norm](t.to(dtype), w.to(dtype), c.to(dtype)).double()
        missing = (torch.linalg.vecdot(w, d) + c).abs() / (w.abs() * room).sum(dim=1)
        assert missing.max() < (2e-5 if norm == "L2" and share > 0.99 else digits)


@pytest.mark.parametrize("norm", NORMS)
def test_steps_onto_planes_are_those_of_pyautoattack(norm):
    t, w, c = rows(64, 192, seed=3)
    w[:, ::7] = 0
    t[:, ::5] = 0
    t[:, 1::5] = 1
    c[:4] *= 100  # beyond the box
    theirs = {"Linf": projection_linf, "L2": projection_l2, "L1": projection_l1}[norm]
    expected = theirs(t, w, (w * t).sum(dim=1) - c)
    torch.testing.assert_close(HYPERPLANES[norm](t, w, c), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_planes_of_a_row_do_not_depend_on_the_batch(norm):
    t, w, c = rows()
    w[3] = w[3].sign() * torch.logspace(-4, 0, 300)  # needs more steps than others
    together = HYPERPLANES[norm](t, w, c)
    order = torch.randperm(len(t), generator=torch.Generator().manual_seed(0))
    assert torch.equal(HYPERPLANES[norm](t[order], w[order], c[order]), together[order])
    for part in (slice(0, 1), slice(3, 4), slice(2, 9)):
        assert torch.equal(HYPERPLANES[norm](t[part], w[part], c[part]), together[part])


# --- into the L1 ball and the box --------------------------------------------------------------------------


@st.composite
def perturbations(draw):
    n = draw(st.integers(1, 4))
    x = np.array(draw(st.lists(pixel, min_size=n, max_size=n)))
    delta = np.array(draw(st.lists(st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-3, 3), min_size=n, max_size=n)))
    return x, delta, draw(st.floats(1e-3, 4))


def nearest_in_ball(x, delta, eps):
    """min ||d - delta||^2 with ||d||_1 <= eps and x + d in [0, 1], as a quadratic programme in d = p - q."""
    n = len(x)
    result = minimize(
        lambda v: ((v[:n] - v[n:] - delta) ** 2).sum(),
        np.zeros(2 * n),
        jac=lambda v: np.r_[2 * (v[:n] - v[n:] - delta), -2 * (v[:n] - v[n:] - delta)],
        bounds=[*((0, 1 - v) for v in x), *((0, v) for v in x)],
        constraints={"type": "ineq", "fun": lambda v: eps - v.sum(), "jac": lambda v: -np.ones(2 * n)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return result.x[:n] - result.x[n:]


@quick
@given(perturbations())
@example((np.array([0.5, 0.5]), np.array([0.1, -0.1]), 0.2))  # on the sphere
@example((np.array([1.0, 0.0]), np.array([2.0, -2.0]), 0.5))  # no room at all
@example((np.array([0.9, 0.5]), np.array([3.0, 0.3]), 0.35))  # clipping first and shrinking then is not nearest
def test_the_l1_ball_against_a_quadratic_programme(case):
    x, delta, eps = case
    d = l1_ball(torch.tensor(x)[None], torch.tensor(delta)[None], eps)[0].numpy()
    assert abs(d).sum() <= eps * (1 + 1e-12)
    assert (x + d >= 0).all()
    assert (x + d <= 1).all()
    nearest = nearest_in_ball(x, delta, eps)
    assert np.linalg.norm(d - delta) <= np.linalg.norm(nearest - delta) + 1e-6
    np.testing.assert_allclose(d, nearest, atol=2e-3)  # the solver's own error


@pytest.mark.parametrize("eps", [1e-3, 0.1, 1.0, 12.0, 36.0, 1e3])
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 3.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_l1_ball_at_its_edges(eps, scale, dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(8, 192, generator=g, dtype=dtype)
    x[:, ::5], x[:, 1::5] = 0, 1
    delta = scale * torch.randn(8, 192, generator=g, dtype=dtype)
    delta[0] = 0
    delta[1, 1:] = 0
    d = l1_ball(x, delta, eps)
    assert d.dtype == dtype
    assert d.isfinite().all()
    assert (d.double().abs().sum(dim=1) <= eps * (1 + 1e-6)).all()
    assert (x + d >= 0).all()
    assert (x + d <= 1).all()
    assert (d[0] == 0).all()
    assert (d * delta >= 0).all()
    again = l1_ball(x, d, eps)
    torch.testing.assert_close(again, d, rtol=0, atol=1e-6)


def test_what_is_inside_the_l1_ball_stays_to_the_last_digit():
    x, delta, _ = rows()
    delta = delta * 1e-3
    d = l1_ball(x, delta, 100.0)
    inside = (x + delta >= 0) & (x + delta <= 1)
    assert inside.double().mean() > 0.9
    assert torch.equal(d[inside], delta[inside])


@pytest.mark.parametrize("eps", [0.1, 2.0, 12.0])
def test_the_l1_ball_is_that_of_pyautoattack(eps):
    x, delta, _ = rows(64, 192, seed=4)
    x[:, ::5] = 0
    expected = delta + L1_projection(x, delta, eps)
    ours = l1_ball(x, delta, eps)
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(ours.double(), l1_ball(x.double(), delta.double(), eps), rtol=0, atol=1e-6)


def test_the_l1_ball_of_a_row_does_not_depend_on_the_batch():
    x, delta, _ = rows()
    delta[3] *= 50
    together = l1_ball(x, delta, 2.0)
    for part in (slice(0, 1), slice(3, 4), slice(2, 9)):
        assert torch.equal(l1_ball(x[part], delta[part], 2.0), together[part])
