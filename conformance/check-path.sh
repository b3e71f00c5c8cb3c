#!/bin/sh
# csi-sanity asks what lies at <mountdir>/target; kubelet, and so the driver, calls that path <mountdir>/mount.
path=${1%/target}/mount
if [ -d "$path" ]; then echo directory
elif [ -f "$path" ]; then echo file
elif [ -e "$path" ]; then echo other
else echo not_found
fi
