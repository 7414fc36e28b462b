#!/bin/sh
# From photos to a model that answers over HTTP: sh examples/photos_to_server.sh [PHOTOS]
# PHOTOS has a folder of images for each class; without it, photos.yaml and what made.py made.
# Needs acme on the PATH (in a clone: PATH=.venv/bin:$PATH), curl, and 'acme-fleet[export]'.
set -eu
run=runs/served port=${PORT:-8321}
mkdir -p runs

if [ $# -eq 1 ]; then    # a fleet file for what there is
    fleet=runs/served.yaml photos=$1
    acme init $fleet --images "$photos" --devices gateway=500kB,cam=90kB:2
else
    fleet=examples/photos.yaml photos=made/photos
fi
photo=$(find "$photos" -type f | sort | head -n 1)

acme check $fleet                     # the plan, with exact sizes; nothing is trained
acme run $fleet --out $run
acme explain $run --device cam-1      # why it got this backbone
acme export $run --device cam-1       # an artifact, verified against PyTorch before it is written

# From here on without torch, as on the device: pip install 'acme-fleet-runtime[images]'
acme-runtime predict $run/artifacts/cam-1 "$photo"
acme-runtime serve $run/artifacts/cam-1 --port "$port" &
trap 'kill $!' EXIT
curl -s --retry 60 --retry-delay 1 --retry-connrefused "http://127.0.0.1:$port/health"
curl -sS -H 'Content-Type: image/png' --data-binary "@$photo" "http://127.0.0.1:$port/predict"
