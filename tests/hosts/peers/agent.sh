#!/bin/sh
# What mpirun takes for ssh: agent.sh HOST COMMAND...; COPPICE_LAB_PREFIX begins the names of the lab's namespaces.
host=$1
shift
exec ip netns exec "$COPPICE_LAB_PREFIX$host" unshare --uts -- sh -c 'hostname "$0"; exec sh -c "$*"' "$host" "$@"
