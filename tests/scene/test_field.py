"""The field: its start, its box, its gradients, its normals."""

import math

import pytest
import torch

from nerf_bridge.config import FieldConfig
from nerf_bridge.ops.field_composite import MAX_EXPONENT, trunc_exp
from nerf_bridge.scene.field import HashGridField

SMALL = FieldConfig(
    n_levels=3, n_features=2, log2_table_size=10, base_resolution=4, finest_resolution=16, hidden_width=8
)
TINY = SMALL.model_copy(
    update={"n_levels": 1, "n_features": 1, "base_resolution": 2, "finest_resolution": 2, "blob_scale": 1.0}
)


def random_points(n: int, seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1.0


def trained_looking(settings: FieldConfig = SMALL, dtype: torch.dtype = torch.float32) -> HashGridField:
    """A field whose table is far from its start."""
    field = HashGridField(settings, seed=3, backend="torch").to(dtype)
    with torch.no_grad():
        field.table.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(4))
        field.out_bias.copy_(torch.tensor([0.3, -0.5, 0.2, 0.9]))
    return field


@pytest.mark.parametrize("activation", ["softplus", "trunc_exp"])
def test_starts_as_a_grey_ball(activation: str) -> None:
    field = HashGridField(SMALL.model_copy(update={"density_activation": activation}), seed=0, backend="torch")
    points = random_points(500)
    sigma, albedo = field(points)
    raw = SMALL.blob_scale * (1.0 - points.double().norm(dim=-1) / 0.5)
    expected = torch.exp(raw) if activation == "trunc_exp" else torch.nn.functional.softplus(raw)
    assert sigma.shape == (500,) and albedo.shape == (500, 3)
    assert torch.allclose(sigma.double(), expected, rtol=1e-2, atol=1e-6)
    assert (albedo - 0.5).abs().max() < 1e-3


def test_density_is_zero_outside_the_box_and_not_on_its_faces() -> None:
    field = HashGridField(SMALL.model_copy(update={"blob_radius": 2.0}), seed=0, backend="torch")
    outside = torch.tensor([[1.01, 0.0, 0.0], [0.0, -1.5, 0.0], [0.0, 0.0, 7.0], [1.1, 1.1, 1.1]])
    assert (field.density(outside) == 0).all()
    assert (field(outside)[0] == 0).all()
    assert (field.density(torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])) > 1).all()


def test_density_alone_equals_the_forward_pass() -> None:
    field, points = trained_looking(), random_points(200)
    assert torch.allclose(field.density(points), field(points)[0], rtol=1e-5, atol=1e-6)


def test_same_seed_same_field_whatever_the_global_generator() -> None:
    first = HashGridField(SMALL, seed=5, backend="torch")
    torch.rand(3)
    again, other = (HashGridField(SMALL, seed=s, backend="torch") for s in (5, 6))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.table, other.table)
    assert first.table.abs().max() <= 1e-4


@pytest.mark.parametrize("output", [0, 1])
def test_gradients_flow_to_table_and_decoder(output: int) -> None:
    field = HashGridField(SMALL, seed=0, backend="torch")
    field(0.3 * random_points(300))[output].sum().backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert field.table.grad is not None and (field.table.grad != 0).any(-1).float().mean() > 0.05


@pytest.mark.parametrize("activation", ["softplus", "trunc_exp"])
def test_gradcheck_in_the_parameters(activation: str) -> None:
    field, points = (
        trained_looking(TINY.model_copy(update={"density_activation": activation}), torch.float64),
        random_points(6).double(),
    )
    names = ["table", "hidden_weight", "hidden_bias", "out_weight", "out_bias"]

    def outputs(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.func.functional_call(field, dict(zip(names, values, strict=True)), (points,))

    assert torch.autograd.gradcheck(outputs, [getattr(field, name).detach().requires_grad_() for name in names])


def test_no_points() -> None:
    field = trained_looking()
    sigma, albedo = field(torch.empty(0, 3))
    assert sigma.shape == (0,) and albedo.shape == (0, 3)
    (sigma.sum() + albedo.sum()).backward()
    assert field.table.grad is not None and (field.table.grad == 0).all()
    assert field.density(torch.empty(0, 3)).shape == (0,)
    assert field.normals(torch.empty(0, 3)).shape == (0, 3)


def test_normals_of_the_starting_ball_point_outward() -> None:
    field = HashGridField(FieldConfig(), seed=0, backend="torch")
    points = random_points(300)
    points = points[points.norm(dim=-1) > 0.1]
    normals = field.normals(points)
    assert (normals.norm(dim=-1) - 1).abs().max() < 1e-4
    assert ((normals * torch.nn.functional.normalize(points, dim=-1)).sum(-1) > 0.999).all()


def test_normals_are_finite_where_the_density_underflows_and_on_the_box() -> None:
    field = trained_looking(SMALL.model_copy(update={"blob_scale": 100.0, "blob_radius": 0.1}))
    corners = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [1.0, -1.0, 1.0]])
    assert (field.density(corners) == 0).all()
    normals = field.normals(corners)
    assert ((normals * corners / 3**0.5).sum(-1) > 0.99).all()


@pytest.mark.parametrize("activation", ["softplus", "trunc_exp"])
def test_normals_are_minus_the_gradient_of_the_density(activation: str) -> None:
    field = trained_looking(SMALL.model_copy(update={"density_activation": activation}), torch.float64)
    points = random_points(200).double().requires_grad_()
    (gradient,) = torch.autograd.grad(field.density(points).sum(), points)
    expected = -torch.nn.functional.normalize(gradient, dim=-1)
    assert torch.allclose(field.normals(points), expected, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(field.normals(points), expected, atol=1e-6)


def test_gradcheck_of_the_normals_in_the_parameters() -> None:
    field, points = trained_looking(TINY, torch.float64), random_points(5).double()
    names = ["table", "hidden_weight", "out_weight"]

    class Normals(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = field

        def forward(self, where: torch.Tensor) -> torch.Tensor:
            return field.normals(where)

    def direction(*values: torch.Tensor) -> torch.Tensor:
        parameters = {f"field.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Normals(), parameters, (points,))

    assert torch.autograd.gradcheck(direction, [getattr(field, name).detach().requires_grad_() for name in names])


def test_normals_can_shape_the_geometry() -> None:
    field = trained_looking()
    field.normals(random_points(50))[:, 2].sum().backward()
    assert field.table.grad is not None and field.table.grad.abs().max() > 0


def test_trunc_exp_is_bounded_and_its_gradient_never_dies_above() -> None:
    x = torch.tensor([-100.0, 0.0, 1.0, 50.0], requires_grad=True)
    y = trunc_exp(x)
    assert torch.allclose(y[:3], torch.tensor([0.0, 1.0, math.e])) and y[3].item() == pytest.approx(
        math.exp(MAX_EXPONENT)
    )
    y.sum().backward()
    expected = torch.tensor([math.exp(-MAX_EXPONENT), 1.0, math.e, math.exp(MAX_EXPONENT)])
    assert x.grad is not None and torch.allclose(x.grad, expected)
