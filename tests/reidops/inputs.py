"""Inputs that the operators' tests share: random, tied, nearly equal, and laid out in memory in every way."""

import torch

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("transposed", "sliced", "offset", "expanded")


def random(*shape, seed=0, dtype=torch.float32, device="cpu"):
    """Standard normal values, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def evaluated(dtype):
    """The type in which dmli_matrix, knn and k_reciprocal answer: float32 for half types, so as to keep the order."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def integers(*shape, high, seed=0, dtype=torch.int64, device="cpu"):
    """Whole numbers 0 to high - 1. As features their squared distances are exact, so many tie exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, shape, generator=generator).to(dtype).to(device)


def clustered(count, *shape, clusters, spread=0.5, seed=0, dtype=torch.float32, device="cpu"):
    """L2-normalised features of `count` images that gather around cluster centres, as identities do."""
    centres = random(clusters, *shape, seed=seed, dtype=torch.float64)
    chosen = integers(count, high=clusters, seed=seed + 1)
    values = centres[chosen] + spread * random(count, *shape, seed=seed + 2, dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1).to(dtype).to(device)


def laid_out(values, layout):
    """A tensor of the same shape that lies in memory in another way; "expanded" repeats the first row."""
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = torch.full((*values.shape[:-1], 2 * values.shape[-1] + 3), float("nan")).to(values)
        view = wide[..., 1 : 1 + 2 * values.shape[-1] : 2]
        return view.copy_(values)
    if layout == "offset":
        room = torch.full((values.numel() + 1,), float("nan")).to(values)
        return room[1:].view(values.shape).copy_(values)
    if layout == "expanded":
        return values[:1].expand(values.shape)
    raise ValueError(layout)


def gradients(function, *inputs, dtype=torch.float64, seed=100):
    """Gradients of a random weighting of the function's floating results, the weights rounded to `dtype` first."""
    leaves = [values.detach().requires_grad_() for values in inputs]
    results = function(*leaves)
    results = [results] if isinstance(results, torch.Tensor) else [r for r in results if r.is_floating_point()]
    weights = [random(*r.shape, seed=seed + i, dtype=dtype).to(r) for i, r in enumerate(results)]
    return torch.autograd.grad(results, leaves, weights)
