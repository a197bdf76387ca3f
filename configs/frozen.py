"""A head on frozen features, with any loss of long-tailed recognition; by default LIFT's (Shi et al., ICML 2024).

python -m ltjax.main --config=configs/frozen.py --workdir=runs/frozen --config.dataset.root=features.safetensors
    --config=configs/frozen.py:gcl         another loss; the names are the keys of LOSSES
    --config=configs/frozen.py:ldam,scale=16,lr=0.3,epochs=100    other numbers
`ltjax extract` writes the file, from images and the weights of any backbone; see docs/pretrained.md. A head takes
seconds, so that learning rate and scale can be chosen on held-out examples (--config.dataset.holdout=0.2).
No published number: each depends on the backbone. ltjax: see benchmarks/results/frozen.md.
Deviations from LIFT: 50 epochs and no adapters; the features are computed once, without augmentation, unless the file
has augmented views. The losses keep the constants of their papers where these do not depend on the features.
"""
from ltjax import recipes

LINEAR = dict(name="Linear")
SCALED = dict(name="NormalizedLinear", scale=25.0, normalize_features=True)  # its cosines carry the scale
COSINE = dict(name="Cosine")  # its cosines get the scale from the loss


def LOSSES(scale):
  return dict(
      logit_adjustment=dict(head=SCALED | dict(scale=scale), adjust=dict(name="logit_adjustment")),
      cross_entropy=dict(head=SCALED | dict(scale=scale)),
      linear=dict(head=LINEAR),
      linear_adjusted=dict(head=LINEAR, adjust=dict(name="logit_adjustment")),
      resampling=dict(head=SCALED | dict(scale=scale), sampler=dict(name="class_balanced")),
      focal=dict(head=SCALED | dict(scale=scale), loss=dict(name="focal")),
      seesaw=dict(head=SCALED | dict(scale=scale), adjust=dict(name="seesaw")),
      gcl=dict(head=COSINE, adjust=dict(name="gcl", scale=scale, noise_scale=1.0, margin=0.1)),
      kps=dict(head=COSINE, adjust=dict(name="kps", scale=scale)),
      ldam=dict(head=COSINE, adjust=dict(name="ldam", scale=scale)),
      cosface=dict(head=COSINE, adjust=dict(name="cosface", scale=scale)),
      arcface=dict(head=COSINE, adjust=dict(name="arcface", scale=scale)))


def get_config(arguments="logit_adjustment"):
  given = recipes.arguments(arguments, loss=tuple(LOSSES(1.0)), scale=25.0, lr=0.5, epochs=50, batch_size=128)
  config = recipes.features(root="features.safetensors")
  block = dict(loss=dict(name="cross_entropy")) | LOSSES(given["scale"])[given["loss"]]
  config.head = block.pop("head")
  config.stages = ("classifier",)
  config.classifier = recipes.stage(
      epochs=given["epochs"], batch_size=given["batch_size"], lr=dict(name="cosine", base=given["lr"]),
      optimizer=recipes.sgd(5e-4), train=("head/.*",), **block)
  return config
