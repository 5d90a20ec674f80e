#!/bin/sh
# Become systemd as PID 1 of new namespaces: boot.sh CGROUP SEED STAGE, with PRIORITY in the environment. machine.py runs
# it in the network namespace of the machine. CGROUP and STAGE (an empty folder) exist.
# The rule: the host's files are visible and never changed, because the root is an overlay over / with its upper layer in
# memory, to which SEED (with etc, usr and opt) is added. All cgroups of the machine are below CGROUP.
set -eu
if [ "${1}" != inside ]; then
	echo $$ > "$1/cgroup.procs"
	exec nice -n "$PRIORITY" setpriv --pdeathsig KILL \
		unshare --pid --fork --kill-child --mount --cgroup --ipc --uts --propagation private "$0" inside "$2" "$3"
fi

seed=$2
stage=$3
mount -t tmpfs -o mode=755 tmpfs "$stage"
mkdir "$stage/upper" "$stage/work" "$stage/upper-opt" "$stage/work-opt" "$stage/root"
root=$stage/root
cp -a "$seed/etc" "$seed/usr" "$stage/upper"

# Units that a machine without devices, kernel modules and logins does not need; some would act outside its namespaces.
units=$stage/upper/etc/systemd/system
mkdir -p "$units"
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket \
	systemd-udevd-kernel.socket systemd-modules-load.service systemd-sysctl.service systemd-binfmt.service \
	proc-sys-fs-binfmt_misc.automount systemd-sysusers.service systemd-hwdb-update.service \
	systemd-update-utmp.service systemd-remount-fs.service systemd-random-seed.service systemd-timesyncd.service \
	systemd-machine-id-commit.service systemd-firstboot.service systemd-journald-audit.socket systemd-initctl.socket \
	dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
	sys-fs-fuse-connections.mount sys-kernel-config.mount systemd-ask-password-console.path \
	systemd-ask-password-wall.path systemd-logind.service systemd-pstore.service \
	systemd-boot-system-token.service systemd-tmpfiles-setup-dev.service systemd-journal-catalog-update.service \
	systemd-update-done.service systemd-networkd.socket systemd-networkd.service ldconfig.service \
	kmod-static-nodes.service modprobe@.service tmp.mount; do
	ln -s /dev/null "$units/$unit"
done
cat > "$units/stage.target" <<-END
	[Unit]
	Description=What a test of one service needs
	Requires=basic.target dbus.service
	After=basic.target dbus.service
	AllowIsolate=yes
END
echo stage > "$stage/upper/etc/hostname"
mount -t overlay overlay -o "lowerdir=/,upperdir=$stage/upper,workdir=$stage/work" "$root"
# A separate mount: SEED is below /, and layers of one overlay must not overlap.
mkdir -p "$root/opt"
mount -t overlay overlay -o "lowerdir=$seed/opt,upperdir=$stage/upper-opt,workdir=$stage/work-opt" "$root/opt"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
# A container may lack kmsg; systemd works without it.
for node in null zero full random urandom tty kmsg; do
	test -e "/dev/$node" || continue
	touch "$root/dev/$node"
	mount --bind "/dev/$node" "$root/dev/$node"
done
# Mode 0666 as udev sets it (50-udev-default.rules); without udev the host's device is restricted to root.
mknod -m 0666 "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
# Where SEED has the product; a package makes its users itself.
test ! -e "$seed/usr/lib/sysusers.d/oxidize.conf" || systemd-sysusers --root="$root" oxidize.conf

cd "$root"
mkdir old
pivot_root . old
umount -l old
exec env -i PATH="$PATH" container=oxidize-test \
	/lib/systemd/systemd --system --unit=stage.target --log-target=journal --log-level=info
