"""MiSLAS (Zhong et al., CVPR 2021) with KPS in its second stage (thesis ch. 3) on large data sets.

python -m ltjax.main --config=configs/mislas_kps_large.py --workdir=runs/mislas_kps    ImageNet-LT
    --config=configs/mislas_kps_large.py:places_lt,batch_size=128                      another data set
Published on ImageNet-LT 52.26, on iNaturalist 2018 70.88 (thesis table 3.6).
ltjax: see benchmarks/results.
The released configurations: ResNet-50, on Places-LT ResNet-152; 180, 90 and 200 epochs on ImageNet-LT, Places-LT and
iNaturalist with cosine decay from 0.1, mixup 0.2, then 10 epochs that cycle through the classes, four images at a time,
and move the BatchNorm statistics (on Places-LT those of the last block). KPS, with the margins of the configs kps,
gradient adjustment from the start and a cosine classifier that starts from the linear one's kernel, comes before the
smoothing. On Places-LT the last block, drawn anew, and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported and starts the next stage; the combination is ours.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(
      arguments, dataset=recipes.LARGE, head=dict(imagenet_lt=0.3, places_lt=0.4, inat=0.3),
      tail=dict(imagenet_lt=0.0, places_lt=0.1, inat=0.0), max_margin=dict(imagenet_lt=0.35, places_lt=0.3,
      inat=0.3), batch_size=0)
  config = recipes.large_scale(given["dataset"])
  config.head = dict(name="Linear")
  config.stages, places = ("representation", "classifier"), given["dataset"] == "places_lt"
  common = dict(batch_size=256, lr=dict(name="cosine", base=0.1),
                optimizer=recipes.sgd(1e-4 if given["dataset"] == "inat" else 5e-4))
  config.representation = recipes.large_stage(
      given["dataset"], epochs=dict(imagenet_lt=180, places_lt=90, inat=200)[given["dataset"]], mixup=0.2, **common)
  config.classifier = recipes.stage(
      epochs=10, train=("head/.*",), lr_factors=(("head/kernel", 0.05),),
      batch_norm=("backbone/stage4_block3/.*",) if places else "shift",
      sampler=dict(name="class_aware", samples_per_class=4), head=dict(name="LearnableScale", cosine=True),
      adjust=dict(name="kps", max_margin=given["max_margin"], base=50.0, scale=15.0, adjust=1.0),
      loss=dict(name="label_aware_smoothing", head=given["head"], tail=given["tail"], shape="concave"), **common)
  return recipes.scaled_batch(config, given["batch_size"])
