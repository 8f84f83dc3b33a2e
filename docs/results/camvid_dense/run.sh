#!/usr/bin/env bash
# Both segmentation protocols and Hummingbird on CamVid, for the two frozen backbones of ../cifar100_camvid/run.sh.
# usage: run.sh RUNS_FOLDER CAMVID_FOLDER      (half an hour on two CPU cores; goes on where it stopped)
# RUNS_FOLDER holds cifar100_vit and cifar100_locatvit, trained at 32 pixels with patches of 4: images of 96 pixels a
# short side give them grids of 24 x 32.
set -euo pipefail
backbones=$1 camvid=$2
export OMP_NUM_THREADS=1 # the two models side by side, a core each

measure() { # vit or locatvit
  local data=(--data.name camvid --data.root "$camvid")
  local images=(--augment.short_side 96 --augment.crop_size '[96, 96]' --augment.antialias true --augment.mean '[0.5, 0.5, 0.5]' --augment.std '[0.5, 0.5, 0.5]')
  local short=(--protocol.num_updates 600 --protocol.batch_size 16 --protocol.evaluate_every 600 --protocol.num_workers 0 --protocol.seed 0)
  locatvit segment --backbone "$backbones/cifar100_$1" --run_dir "runs/locat_$1" "${data[@]}" "${images[@]}" "${short[@]}"
  locatvit segment --backbone "$backbones/cifar100_$1" --run_dir "runs/linear_$1" "${data[@]}" "${images[@]}" "${short[@]}" \
    --protocol.protocol linear --protocol.window_size 96 --protocol.window_stride 64
  locatvit hummingbird --backbone "$backbones/cifar100_$1" --run_dir "runs/hummingbird_$1" "${data[@]}" \
    --augment.image_size 96
}

measure vit &
measure locatvit &
wait
locatvit report runs/{locat,linear,hummingbird}_{vit,locatvit} --output runs/report.md
