#!/bin/busybox sh
# The first process of a guest: a root that can be pivoted from, the usual file systems, then the test's own script.
busybox=/bin/busybox
if [ -z "$MOVED" ]; then
    # The kernel's first root file system has no mount above it, and pivot_root(2) wants one.
    $busybox mount -t tmpfs tmpfs /new
    for name in /*; do
        [ "$name" = /new ] || $busybox cp -a "$name" /new/
    done
    export MOVED=1
    exec /new/bin/busybox switch_root /new /init
fi
$busybox mkdir -p /proc /sys /dev /tmp /run
$busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 none /sys/fs/cgroup
# No module is loaded by hand: the kernel asks for what it is asked for, as on any machine.
depmod -a
ip link set lo up
sh /script </dev/null
echo "guest: the script ended with $?"
poweroff -f
