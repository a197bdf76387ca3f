"""Weights of examples that are learned on held-out images: pure functions of losses as functions of the parameters.

Both methods look one step of gradient descent ahead. The derivative of the held-out loss after that step needs no
backward pass through the step: it is a directional derivative of the examples' losses.
"""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["agreement", "init_weight_net", "weight_net", "weights_of"]

MOMENTUM, DECAY = 0.9, 5e-4  # of the weight net's parameters, as in the released code


def agreement(losses: Callable[[Any], Float[Array, "b"]], held_out: Callable[[Any], Float[Array, ""]], params: Any,
              state: Any = None, lr: Any = None) -> tuple[Float[Array, "b"], Any]:
  """The weights of L2RW: examples whose gradient points where the held-out loss falls.

  w_i = b max(g_i, 0) / sum_j max(g_j, 0), g_i = -d/d e_i L(p - r grad sum_j e_j l_j(p)) at e = 0 = r <grad l_i, grad L>

  All weights are 0 if no g_i is positive. The rate r cancels. g is one forward-mode derivative of all l_i along grad L.

  Args:
    losses: l, parameters -> [b].
    held_out: L, parameters -> the mean loss of held-out images.
    params: p, a pytree.
    state: returned as it is; there is none.
    lr: not used.

  Returns:
    (w [b], with a mean of 1 or all 0; state). The paper's weights sum to 1 and weigh a sum of losses, these weigh a
    mean.

  References:
    Ren et al., `Learning to Reweight Examples for Robust Deep Learning <https://arxiv.org/abs/1803.09050>`_, 2018,
    equations 11 to 14.
  """
  del lr
  _, along = jax.jvp(losses, (params,), (jax.grad(held_out)(params),))
  positive = jnp.maximum(along, 0)
  return len(positive) * _normalized(positive), state


def init_weight_net(key: jax.Array, *, hidden: Annotated[int, "[1, inf)"] = 100) -> dict:
  """The state of `weight_net` before the first step: its parameters and their momentum.

  Kernels and biases are uniform in +-1/sqrt(inputs), as PyTorch's linear layers.

  Args:
    key: of the draws.
    hidden: units of the hidden layer.
  """
  draw = jax.random.split(key, 4)
  shapes = dict(kernel1=(1, (1, hidden)), bias1=(1, (hidden,)), kernel2=(hidden, (hidden, 1)), bias2=(hidden, (1,)))
  params = {name: jax.random.uniform(each, shape, jnp.float32, -inputs**-0.5, inputs**-0.5)
            for each, (name, (inputs, shape)) in zip(draw, shapes.items(), strict=True)}
  return dict(params=params, momentum=jax.tree.map(jnp.zeros_like, params))


def weights_of(net: dict, values: Float[Array, "b"]) -> Float[Array, "b"]:
  """V(l) / sum V(l), V(l) = sigmoid(W_2 ReLU(W_1 l + b_1) + b_2), for losses l [b]; they sum to 1."""
  inner = jax.nn.relu(values[:, None] @ net["kernel1"] + net["bias1"])
  return _normalized(jax.nn.sigmoid(inner @ net["kernel2"] + net["bias2"])[:, 0])


def weight_net(losses: Callable[[Any], Float[Array, "b"]], held_out: Callable[[Any], Float[Array, ""]], params: Any,
               state: dict, lr: Float[Array, ""], *, rate: Annotated[float, "(0, inf)"] = 1e-5) -> tuple[
                   Float[Array, "b"], dict]:
  """The weights of Meta-Weight-Net, a small network of the loss, after a step of that network.

  J(p, v) = sum_i l_i(p) V_i(l(p)); p' = p - r grad_p J; v <- SGD of L(p') in v; w = b V(l(p)) with the new v

  Here V is `weights_of`. As in the released code, the gradient of J also passes through the network's input and the sum
  of its outputs, the step to p' is plain gradient descent at the learning rate r of the training, and the network has
  Nesterov momentum 0.9 and weight decay 5e-4. dL(p')/dv = -r d/dv <dJ/dl, d>, where d is the derivative of l along
  grad L at p'.

  Args:
    losses: l, parameters -> [b].
    held_out: L, parameters -> the mean loss of held-out images.
    params: p, a pytree.
    state: of `init_weight_net`.
    lr: r.
    rate: the learning rate of v; 1e-5 in the released code.

  Returns:
    (w [b] with a mean of 1, the new state).

  References:
    Shu et al., `Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting
    <https://arxiv.org/abs/1902.07379>`_, 2019, equations 3 to 5; xjtushujun/Meta-weight-net_class-imbalance.
  """
  net = state["params"]
  values, backward = jax.vjp(losses, params)

  def slope(net):
    return jax.grad(lambda values: jnp.sum(values * weights_of(net, values)))(values)

  (descent,) = backward(slope(net))
  ahead = jax.tree.map(lambda p, g: p - lr * g, params, descent)
  _, along = jax.jvp(losses, (params,), (jax.grad(held_out)(ahead),))
  gradient = jax.grad(lambda net: -lr * jnp.sum(slope(net) * along))(net)
  decayed = jax.tree.map(lambda g, v: g + DECAY * v, gradient, net)
  momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, state["momentum"], decayed)
  net = jax.tree.map(lambda v, g, m: v - rate * (g + MOMENTUM * m), net, decayed, momentum)
  return len(values) * weights_of(net, values), dict(params=net, momentum=momentum)


def _normalized(values: Float[Array, "b"]) -> Float[Array, "b"]:
  """`values`, none of them negative, divided by their sum; zeros stay zeros."""
  total = jnp.sum(values)
  return values / jnp.where(total > 0, total, 1)
