"""benchmarks/torch_training.py: its step is SGD's, in whatever order gradients lie in memory."""

import pytest

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["j0", "j2 by attack", "j2 by penalty", "j2_lip", "j2_lip of all"])
def test_a_step_is_that_of_gradient_descent(benchmark, name):
    theirs, steps = benchmark("torch_training"), benchmark("steps")
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(
        3, 4, 3
    )  # channels_last: second derivatives come in another order
    network = torch.nn.Sequential(
        convolution, torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(64, 3)
    ).to(memory_format=torch.channels_last)
    frozen = theirs.frozen_view(network)
    x = torch.rand(5, 3, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    y = torch.tensor([0, 1, 2, 0, 1])
    objective = theirs.OBJECTIVES[name]
    _, gradients = objective(network, frozen, x, y)
    old = [weight.detach().clone() for weight in network.parameters()]
    theirs.step(objective, network, frozen, x, y)()
    for before, grad, after in zip(old, gradients, network.parameters(), strict=True):
        expected = before - steps.RATE * (grad + steps.DECAY * before)
        torch.testing.assert_close(after.detach(), expected, rtol=1e-5, atol=1e-7)
