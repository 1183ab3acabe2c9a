#!/bin/sh
# SeaweedFS with one identity; its other ports stay inside.
set -eu
umask 077
cat > /tmp/identities.json <<JSON
{"identities": [{"name": "lab", "actions": ["Admin"], "credentials":
  [{"accessKey": "$AWS_ACCESS_KEY_ID", "secretKey": "$AWS_SECRET_ACCESS_KEY"}]}]}
JSON
exec weed -logtostderr=true server -s3 -dir=/data -s3.config=/tmp/identities.json \
    -ip=127.0.0.1 -ip.bind="${LISTEN_ADDRESS:-0.0.0.0}" \
    -s3.port=8333 -master.port=8334 -volume.port=8335 -filer.port=8336 \
    -s3.port.grpc=18333 -master.port.grpc=18334 -volume.port.grpc=18335 -filer.port.grpc=18336 \
    -s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false \
    -volume.max=0 -volume.preStopSeconds=0 -master.volumeSizeLimitMB=256
