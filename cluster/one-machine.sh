#!/usr/bin/env bash
# What it does: starts a Ray head on this machine, for `ray job submit`, with a token of its own; and ends it, without touching
#   any other Ray of the machine. For one run there is no need of it: `waver train experiments/msrvtt.yaml --workers 4` starts
#   Ray by itself and ends it. With it runs go on when you log out, and several share the GPUs in turn.
#   Dashboard and jobs answer on 127.0.0.1 alone. Other ports of Ray are open to the network and ask for the token, but for two
#   with metrics; a firewall should close them.
# Fill in: nothing. If a port or the folder does not suit, WAVER_DASHBOARD_PORT (8265) and WAVER_HEAD (/tmp/waver-UID, a short
#   path: Ray keeps sockets in it) in the environment say otherwise.
# Cost of leaving it running: no money; about 1 GB of memory, and CPUs and GPUs only while jobs run.
# Shut down: cluster/one-machine.sh stop   (jobs end with it: `ray job stop` them first, and they write a checkpoint)
#
#   cluster/one-machine.sh start
#   eval "$(cluster/one-machine.sh env)"
#   ray job submit --working-dir . --no-wait -- waver train experiments/msrvtt.yaml --workers 4 \
#     --set storage.path=$PWD/storage --set data.annotations=$PWD/data/msrvtt/annotations --set data.videos=$PWD/data/msrvtt/videos
#   cluster/one-machine.sh stop
set -euo pipefail

folder=${WAVER_HEAD:-/tmp/waver-$(id -u)}
port=${WAVER_DASHBOARD_PORT:-8265}
address=http://127.0.0.1:$port
start_s=60
stop_s=60  # Ray gives what runs 30 s to leave

say() { echo "$*" >&2; }
fail() { say "error: $*"; exit 1; }

# Beside the number of the process its time of birth: the number alone may have gone to somebody else since.
born() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2> /dev/null; }

head_process() {
    local pid birth
    read -r pid birth 2> /dev/null < "$folder/head.pid" || return 1
    [ -n "$birth" ] && [ "$(born "$pid")" = "$birth" ] && echo "$pid"
}

environment() {
    cat "$folder/environment" 2> /dev/null || fail "no head was started here: cluster/one-machine.sh start"
}

answers() {
    TOKEN_FILE=$folder/token python3 - "$address/api/version" 2> /dev/null <<'PYTHON'
import os, pathlib, sys, urllib.request

token = pathlib.Path(os.environ["TOKEN_FILE"]).read_text()
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {token}"})
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=2)
PYTHON
}

# The port, if nobody listens there; with 0, one that is free.
free_port() {
    python3 - "$1" 2> /dev/null <<'PYTHON'
import socket, sys

probe = socket.socket()
# Connections of a head that was just ended linger for a minute; they are in nobody's way.
probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
probe.bind(("127.0.0.1", int(sys.argv[1])))
print(probe.getsockname()[1])
PYTHON
}

forget() { rm -f "$folder/head.pid" "$folder/environment" "$folder/token"; }

start() {
    local pid
    command -v ray > /dev/null || fail "there is no ray command: activate the environment in which waver is installed"
    [ ! -f "$folder/environment" ] || . "$folder/environment"
    if pid=$(head_process); then
        say "a head runs already (process $pid, ${RAY_API_SERVER_ADDRESS-}); end it with: cluster/one-machine.sh stop"
        return
    fi
    free_port "$port" > /dev/null \
        || fail "port $port is taken: choose another, as in WAVER_DASHBOARD_PORT=8266 cluster/one-machine.sh start"
    umask 077
    mkdir -p "$folder"
    chmod 700 "$folder"
    python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$folder/token"
    printf 'export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%q RAY_API_SERVER_ADDRESS=%q\n' \
        "$folder/token" "$address" > "$folder/environment"

    unset RAY_AUTH_TOKEN RAY_ADDRESS
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
    # Ports that Ray would take by number are left to chance, so that another Ray of the machine is no trouble.
    setsid ray start --head --block --disable-usage-stats --node-ip-address=127.0.0.1 --port=0 \
        --dashboard-host=127.0.0.1 --dashboard-port="$port" --dashboard-agent-listen-port=0 --ray-client-server-port="$(free_port 0)" \
        --temp-dir="$folder/ray" > "$folder/head.log" 2>&1 < /dev/null &
    pid=$!
    echo "$pid $(born "$pid")" > "$folder/head.pid"
    for ((second = 0; second < start_s; second++)); do
        if answers; then
            say "Ray's head runs (process $pid); dashboard: $address, which asks for the token in $folder/token"
            say "now: eval \"\$(cluster/one-machine.sh env)\", then: ray job submit --working-dir . -- waver ..."
            return
        fi
        if ! head_process > /dev/null; then
            forget
            tail -n 20 "$folder/head.log" >&2
            fail "the head ended; its output is above"
        fi
        sleep 1
    done
    stop
    fail "the head did not answer in $start_s s; it was ended; see $folder/head.log"
}

stop() {
    local pid
    if ! pid=$(head_process); then
        say "no head of $folder runs"
        forget
        return
    fi
    # `ray start --block` ends its own processes, and only those; `ray stop` would end every Ray of the machine.
    kill -TERM "$pid"
    for ((second = 0; second < stop_s; second++)); do
        head_process > /dev/null || break
        sleep 1
    done
    kill -KILL -- "-$pid" 2> /dev/null || true
    forget
    say "Ray's head (process $pid) is ended; logs are in $folder/ray"
}

# Before anything in it is read: a folder in /tmp may have been put there for us.
[ ! -e "$folder" ] || [ -O "$folder" ] || fail "$folder belongs to somebody else: name another, as in WAVER_HEAD=/tmp/head"

case ${1-} in
    start) start ;;
    env) environment ;;
    stop) stop ;;
    *) fail "say what to do: cluster/one-machine.sh start|env|stop" ;;
esac
