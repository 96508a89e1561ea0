#!/bin/sh
# One of two Raspberry Pis, in a machine of 'scripts/vm pair' ($VM is a or b): the steps of a user
# with configs/pi-a.yaml and pi-b.yaml. Leaves its results in /out; 'a' leads, 'b' follows.
set -eu

at() { until [ -e "/out/$1" ]; do sleep 0.5; done; }
reached() { echo "$1"; touch "/out/$1"; }

# Replace the addresses of the pair's wire by the example's outer addresses.
ip address flush dev wan
case $VM in
a) own=192.0.2.1 peer=198.51.100.1 other=b ;;
b) own=198.51.100.1 peer=192.0.2.1 other=a ;;
esac
ip address add "$own/32" dev wan
ip route add "$peer" dev wan

mkdir /etc/esp-gw
cp "configs/pi-$VM.yaml" /etc/esp-gw/gateway.yaml
cd /etc/esp-gw
umask 077
mkdir -p keys
if [ "$VM" = a ]; then
    openssl rand -hex 36 > keys/pi-b.out.key
    openssl rand -hex 36 > keys/pi-b.in.key
    cp keys/pi-b.out.key /out/pi-a.in.key
    cp keys/pi-b.in.key /out/pi-a.out.key
    ssh-keygen -q -t ed25519 -N '' -f /out/id
    reached keys
else
    at keys
    cp /out/pi-a.*.key keys
fi
mkdir /run/esp-gw
esp-gw ledger create
esp-gw run > "/out/$VM.log" 2>&1 &
gateway=$!
until esp-gw status > /dev/null 2>&1; do kill -0 $gateway; sleep 1; done

mkdir -p /root/.ssh /run/sshd
cp /out/id.pub /root/.ssh/authorized_keys
cp /out/id /root/.ssh/id_ed25519
echo "StrictHostKeyChecking accept-new" > /root/.ssh/config
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/host_key
/usr/sbin/sshd -f /dev/null -h /etc/ssh/host_key -o PasswordAuthentication=no -E "/out/$VM.sshd"

reached "$VM is up"
at "$other is up"
if [ "$VM" = a ]; then
    tcpdump -n -i wan -Z root -w /out/wire.pcap 2> /out/tcpdump &
    capture=$!
    until grep -q listening /out/tcpdump; do kill -0 $capture; sleep 0.5; done
    until ping -n -c 1 -W 10 10.2.0.1 > /out/ping; do sleep 1; done
    for way in forward back; do
        at "$way"
        [ $way = back ] && option=-R || option=
        # shellcheck disable=SC2086 # zero or one option
        iperf3 --json -c 10.2.0.1 -t 3 --connect-timeout 60000 $option > "/out/$way.json"
    done
    kill $capture
    wait $capture || true
    esp-gw stats --json > /out/a.stats
    esp-gw status --json > /out/a.status
    reached "iperf3 is done"
    python3 -m lab.two_pis --json --seconds 2 "root@$own" "root@$peer" \
        > /out/two-pis.json 2> /out/two-pis.errors || reached "two-pis failed"
    reached "all done"
else
    for way in forward back; do
        iperf3 -s -1 --forceflush > "/out/$way.server" &
        until grep -q listening "/out/$way.server"; do sleep 0.5; done
        reached "$way"
        wait $!
    done
    esp-gw status --json > /out/b.status
    at "all done"
    pgrep iperf3 > /out/left || true
fi
