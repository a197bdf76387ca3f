"""Learnable weight scaling after cross entropy (LWS; Kang et al., ICLR 2020) on large data sets.

python -m ltjax.main --config=configs/lws_large.py --workdir=runs/lws    ImageNet-LT
    --config=configs/lws_large.py:places_lt,batch_size=128               another data set
Published on ImageNet-LT 47.70, on iNaturalist 2018 69.49, on Places-LT 37.62 (thesis table 5.3, "Decoupling"). On
ImageNet-LT with backbone=resnext50 49.9, backbone=resnet10 41.4, backbone=resnext152 53.3 (CAMC table IV; copies).
ltjax: see benchmarks/results.
The first stage is that of the configs ce_crt, with a ResNet-50 or, on Places-LT, a ResNet-152. The second freezes it
and learns one scale per class with class-aware sampling, for 5 epochs with cosine decay from 0.2 (Places-LT: 0.1), as
in the released code. On Places-LT the last block, drawn anew, and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported and starts the next stage; the 30 epochs of the first stage on Places-LT are ours.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, backbone="", batch_size=0)
  config = recipes.large_scale(given["dataset"], given["backbone"])
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  places = given["dataset"] == "places_lt"
  common = dict(batch_size=256 if places else 512, lr=dict(name="cosine", base=0.1 if places else 0.2),
                optimizer=recipes.sgd(1e-4 if given["dataset"] == "inat" else 5e-4))
  config.representation = recipes.large_stage(
      given["dataset"], epochs=30 if places else 90, lr_factors=(("backbone/.*", 0.1),) if places else (), **common)
  config.classifier = recipes.stage(
      epochs=5, train=("head/scale",), head=dict(name="LearnableScale"), batch_norm="eval",
      sampler=dict(name="class_aware", samples_per_class=4), loss=dict(name="cross_entropy"), **common)
  return recipes.scaled_batch(config, given["batch_size"])
