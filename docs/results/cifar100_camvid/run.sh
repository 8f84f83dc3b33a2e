#!/usr/bin/env bash
# CIFAR-100 classification with a small ViT and its LocAt twin, then CamVid segmentation with both frozen backbones.
# usage: run.sh CIFAR100_FOLDER CAMVID_FOLDER      (about an hour and a half on two CPU cores; goes on where it stopped)
set -euo pipefail
cifar100=$1 camvid=$2
export OMP_NUM_THREADS=1 # the two models train side by side, a core each

train() { # name model
  locatvit train --run_dir "runs/cifar100_$1" --model.name "$2" \
    --model.kwargs '{"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}' \
    --data.name cifar100 --data.root "$cifar100" \
    --augment.image_size 32 --augment.rand_augment null --augment.random_erasing 0 \
    --augment.random_crop_padding 4 --augment.crop_fraction 1 \
    --training.epochs 9 --training.warmup_epochs 1 --training.batch_size 128 \
    --training.mixup 0 --training.cutmix 0 --training.precision bf16 --training.num_workers 0 --training.seed 0
  locatvit segment --backbone "runs/cifar100_$1" --run_dir "runs/camvid_$1" --data.name camvid --data.root "$camvid" \
    --augment.short_side 96 --augment.crop_size '[96, 96]' \
    --augment.mean '[0.5, 0.5, 0.5]' --augment.std '[0.5, 0.5, 0.5]' \
    --protocol.num_updates 600 --protocol.batch_size 16 --protocol.evaluate_every 300 \
    --protocol.num_workers 0 --protocol.seed 0
}

train vit vit_tiny_patch16_224 &
train locatvit locatvit_tiny &
wait
locatvit report runs/cifar100_vit runs/cifar100_locatvit runs/camvid_vit runs/camvid_locatvit --output runs/report.md
