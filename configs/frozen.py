"""A head on frozen features, with any loss of long-tailed recognition; by default LIFT's (Shi et al., ICML 2024).

python -m ltjax.main --config=configs/frozen.py --workdir=runs/frozen --config.dataset.root=features.safetensors
    --config=configs/frozen.py:gcl         another loss; the names are those of LOSSES
    --config=configs/frozen.py:ldam,scale=16,lr=0.3,epochs=100,start=random    other numbers, another start
`ltjax extract` writes the file, from images and the weights of any backbone; see docs/pretrained.md. A head takes
seconds, so that learning rate and scale can be chosen on held-out examples (--config.dataset.holdout=0.2).
No published number: each depends on the backbone. ltjax: see benchmarks/results, frozen_*.md.
Deviations from LIFT: 50 epochs and no adapters; the features are computed once, without augmentation, unless the file
has augmented views. The losses keep the constants of their papers where these do not depend on the features.
"""
from ltjax import recipes

OURS = ("logit_adjustment", "cross_entropy", "resampling", "gcl", "kps", "ldam", "fbl", "norm_fc")  # of recipes.losses
LINEAR, COSINE = dict(name="Linear"), dict(name="Cosine")  # whose cosines get the scale from the loss


def LOSSES(scale, epochs=50):
  scaled = dict(name="NormalizedLinear", scale=scale, normalize_features=True)
  return {name: recipes.losses(name, scale, epochs) for name in OURS} | dict(
      linear=dict(head=LINEAR), linear_resampling=dict(head=LINEAR, sampler=dict(name="class_balanced")),
      linear_adjusted=dict(head=LINEAR, adjust=dict(name="logit_adjustment")),
      posthoc_adjustment=dict(head=scaled, posthoc=(dict(name="logit_adjustment"),)),
      focal=dict(head=scaled, loss=dict(name="focal")), seesaw=dict(head=scaled, adjust=dict(name="seesaw")),
      cosface=dict(head=COSINE, adjust=dict(name="cosface", scale=scale)),
      arcface=dict(head=COSINE, adjust=dict(name="arcface", scale=scale)))


def get_config(arguments="logit_adjustment"):
  given = recipes.arguments(arguments, loss=tuple(LOSSES(1.0)), start=("class_mean", "linear_probe", "random"),
                            scale=25.0, lr=0.5, epochs=50, batch_size=128)
  config = recipes.features(root="features.safetensors")
  block = dict(loss=dict(name="cross_entropy")) | LOSSES(given["scale"], given["epochs"])[given["loss"]]
  config.head, config.posthoc = block.pop("head"), block.pop("posthoc", ())
  config.stages = ("classifier",)
  config.classifier = recipes.stage(
      epochs=given["epochs"], batch_size=given["batch_size"], lr=dict(name="cosine", base=given["lr"]),
      optimizer=recipes.sgd(5e-4), train=("head/.*",),
      head_init=None if given["start"] == "random" else dict(name=given["start"]), **block)
  return config
