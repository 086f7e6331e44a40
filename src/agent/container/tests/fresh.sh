# Run in the bench's directory. What does not change from run to run is made once, in `template`.
umask 022
set -e
umount -l src/dir/sub 2>/dev/null || true
umount -l src/flags 2>/dev/null || true
rm -rf rootfs src
if [ ! -d template ]; then
    mkdir -p template/bin
    cp /bin/busybox template/bin/
    for a in $(template/bin/busybox --list); do [ -e template/bin/$a ] || ln -s busybox template/bin/$a; done
    ln probe template/bin/osc-probe
    cd template
    mkdir -p etc tmp home/user filled/deep locked
    printf 'root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n' >etc/passwd
    echo 'root:x:0:' >etc/group
    chmod 700 locked
    chown 1000:1000 home/user
    echo one >filled/one
    chmod 640 filled/one
    chown 5:6 filled/one
    ln -s one filled/link
    echo two >filled/deep/two
    chown 7:8 filled/deep
    chmod 755 filled/deep
    printf text >bin/text
    printf true >bin/no-shebang
    chmod 755 bin/no-shebang
    printf '#!/no/such/interpreter\n' >bin/bad-shebang
    chmod 755 bin/bad-shebang
    ln -s /etc to-etc
    ln -s ../../../../etc to-outside
    cd ..
    # Namespaces to be joined by path.
    mkdir ns
    mount -t tmpfs ns ns
    mount --make-private ns
    touch ns/ipc ns/uts ns/net
    unshare --ipc=ns/ipc --uts=ns/uts --net=ns/net sh -c 'hostname of-a-path; echo 7777 >/proc/sys/kernel/msgmax'
    ln -s ns/ipc ns/uts ns/net .
fi
cp -al template rootfs
# Hard links share their content: what a container writes to needs one of its own.
for f in etc/passwd etc/group filled/one filled/deep/two; do
    cp -p rootfs/$f copy
    mv copy rootfs/$f
done
mkdir -p src/dir/sub src/flags
echo file >src/file
echo in >src/dir/in
mount -t tmpfs -o size=64k sub src/dir/sub
echo under >src/dir/sub/under
mount -t tmpfs -o size=64k,nosuid,nodev,noexec,noatime flags src/flags
