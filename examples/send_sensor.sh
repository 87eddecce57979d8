#!/usr/bin/env bash
# Send lines of numbers to a pipeline that listens, with nothing but a shell: a reading a line, as CSV.
#
# Run:    ./read_sensor | examples/send_sensor.sh 127.0.0.1 9000
# to:     partime-async run 'tcp://127.0.0.1:9000?format=csv' --model ...
#
# A device that knows more writes JSON instead (?format=json): {"values": [1, 2, 3], "sequence": 7, "captured_at": 12.5}
set -euo pipefail

exec 3<>"/dev/tcp/$1/$2"
while read -r line; do
    echo "$line" >&3
done
