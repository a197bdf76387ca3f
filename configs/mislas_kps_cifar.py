"""MiSLAS (Zhong et al., CVPR 2021) with KPS in its second stage (thesis ch. 3) on CIFAR-LT.

python -m ltjax.main --config=configs/mislas_kps_cifar.py --workdir=runs/mislas_kps    CIFAR-10-LT, imbalance 100
    --config=configs/mislas_kps_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 82.74 (imbalance 100; 85.64 at 50; thesis table 3.6). On CIFAR-100-LT 47.72 (imbalance 100;
52.41 at 50; thesis table 3.6).
ltjax: see benchmarks/results.
ResNet-32; the schedule and constants of both released codes. The released constants depend on the imbalance: on
CIFAR-10 head=0.2,lr_factor=0.2 at 50 and head=0.1,lr_factor=0.2 at 10, on CIFAR-100 head=0.3,tail=0.0,lr_factor=0.1 at
50 and head=0.2,tail=0.0,lr_factor=0.1 at 10.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage. The authors released no code of the combination; ours: the
second stage has a cosine classifier that starts from the linear one's kernel, and KPS, with gradient adjustment from
the start, comes before the label-aware smoothing.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  given = recipes.arguments(
      arguments, dataset=recipes.CIFAR, imbalance=100.0, head=dict(cifar10=0.3, cifar100=0.4),
      tail=dict(cifar10=0.0, cifar100=0.1), lr_factor=dict(cifar10=0.5, cifar100=0.2))
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"])
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4), mixup=1.0, loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=128, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(2e-4), train=("head/.*",),
      lr_factors=(("head/kernel", given["lr_factor"]),), sampler=dict(name="class_aware", samples_per_class=4),
      batch_norm=dict(cifar10="eval", cifar100="shift")[given["dataset"]],
      head=dict(name="LearnableScale", cosine=True),
      adjust=dict(name="kps", max_margin=0.2, base=50.0, scale=15.0, adjust=1.0),
      loss=dict(name="label_aware_smoothing", head=given["head"], tail=given["tail"], shape="concave"))
  return config
