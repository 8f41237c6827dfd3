#!/usr/bin/env bash
# What it does: starts a Ray head for jobs on this machine, with a token of its own, and stops it again. It leaves every other
#   Ray on the machine alone. A single run does not need it: `waver train experiments/msrvtt.yaml --workers 4` starts and stops
#   Ray by itself. With this head, runs continue after you log out, and several runs take turns on the GPUs.
#   The dashboard and its job API listen on 127.0.0.1 alone. Ray's other ports are open to the network and require the token,
#   except two that serve metrics; a firewall should close them all.
# Fill in: nothing. To change the dashboard's port or the folder of the head, set WAVER_DASHBOARD_PORT (default 8265) or
#   WAVER_HEAD (default /tmp/waver-UID; keep the path short, since Ray puts sockets in it).
# Cost of leaving it running: no money; about 1 GB of memory. CPUs and GPUs are used only while jobs run.
# Shut down: cluster/one-machine.sh stop   (this also ends jobs; `ray job stop` them first, so that they write a checkpoint)
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
stop_s=60  # Ray gives its processes 30 s to end

say() { echo "$*" >&2; }
fail() { say "error: $*"; exit 1; }

# The start time of a process. It is stored beside the process id, which another process may have received since.
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

# Prints the port if it is free, and a free port for 0.
free_port() {
    python3 - "$1" 2> /dev/null <<'PYTHON'
import socket, sys

probe = socket.socket()
# Connections of a head that has just stopped linger for a minute and do no harm.
probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
probe.bind(("127.0.0.1", int(sys.argv[1])))
print(probe.getsockname()[1])
PYTHON
}

forget() { rm -f "$folder/head.pid" "$folder/environment" "$folder/token"; }

start() {
    local pid
    command -v ray > /dev/null || fail "the command ray was not found: activate the environment in which waver is installed"
    [ ! -f "$folder/environment" ] || . "$folder/environment"
    if pid=$(head_process); then
        say "a head runs already (process $pid, ${RAY_API_SERVER_ADDRESS-}); stop it with: cluster/one-machine.sh stop"
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
    # Random ports in place of Ray's fixed ones, so that another Ray on this machine does not collide.
    setsid ray start --head --block --disable-usage-stats --node-ip-address=127.0.0.1 --port=0 \
        --dashboard-host=127.0.0.1 --dashboard-port="$port" --dashboard-agent-listen-port=0 --ray-client-server-port="$(free_port 0)" \
        --temp-dir="$folder/ray" > "$folder/head.log" 2>&1 < /dev/null &
    pid=$!
    echo "$pid $(born "$pid")" > "$folder/head.pid"
    for ((second = 0; second < start_s; second++)); do
        if answers; then
            say "Ray's head is running (process $pid); dashboard: $address, which requires the token in $folder/token"
            say "next: eval \"\$(cluster/one-machine.sh env)\", then: ray job submit --working-dir . -- waver ..."
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
    fail "the head did not answer within $start_s s and was stopped; see $folder/head.log"
}

stop() {
    local pid
    if ! pid=$(head_process); then
        say "no head of $folder is running"
        forget
        return
    fi
    # `ray start --block` stops only its own processes; `ray stop` would stop every Ray of this user on the machine.
    kill -TERM "$pid"
    for ((second = 0; second < stop_s; second++)); do
        head_process > /dev/null || break
        sleep 1
    done
    kill -KILL -- "-$pid" 2> /dev/null || true
    forget
    say "Ray's head (process $pid) has stopped; logs are in $folder/ray"
}

# Check the owner before reading any file: another user may have created this folder in /tmp.
[ ! -e "$folder" ] || [ -O "$folder" ] || fail "$folder belongs to another user: choose another, as in WAVER_HEAD=/tmp/head"

case ${1-} in
    start) start ;;
    env) environment ;;
    stop) stop ;;
    *) fail "usage: cluster/one-machine.sh start|env|stop" ;;
esac
