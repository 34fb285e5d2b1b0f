"""Every CUDA source compiles for the CPU, and the library's operators take part."""


def test_every_source_compiles(host):
    assert not host.built.errors, "\n".join(f"{name}:\n{error}" for name, error in host.built.errors.items())


def test_new_tensors_are_poisoned(host):
    import torch

    assert torch.empty(5).isnan().all()
