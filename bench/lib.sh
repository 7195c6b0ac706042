# lib.sh: what bench/roles and bench/onion have in common. Who sources it is in the
# root of the repository and has set T, a temporary directory that this file's
# clean_up removes, BASE, the first of 1,200 ports, and CEPA, the program.
# shellcheck shell=bash

WEB=127.0.0.1:$BASE
SAMPLES=$T/samples # lines: system, metric, value
pids=()
declare -A socks_of pids_of # by system

clean_up() {
	local kind
	for kind in vanilla kist; do
		[ -d "$T/$kind" ] && BASE=$(tor_base $kind) bench/tor/tornet.sh down "$T/$kind"
	done
	[ ${#pids[@]} -gt 0 ] && kill "${pids[@]}" 2>/dev/null
	wait 2>/dev/null
	rm -rf "$T"
}

die() {
	echo "$0: $*" >&2
	exit 1
}

say() { echo "$*" >&2; }

# await HOST:PORT: until somebody listens there.
await() {
	for _ in $(seq 200); do
		(exec 3<>"/dev/tcp/${1%:*}/${1#*:}") 2>/dev/null && return 0
		sleep 0.05
	done
	die "nobody listens at $1"
}

record() { echo "$1|$2|$3" >>"$SAMPLES"; } # SYSTEM METRIC VALUE

# load SYSTEM ARGUMENTS…: one run of the load generator, through the system's
# SOCKS port, into $T/out.json. False, with a word about it, when anything failed.
load() {
	local system=$1
	shift
	local -a proxy=()
	[ -n "${socks_of[$system]}" ] && proxy=(--socks "${socks_of[$system]}")
	if "$T/load" "${proxy[@]}" --pids "${pids_of[$system]}" "$@" >"$T/out.json" && grep -q '"Failed": 0' "$T/out.json"; then
		return 0
	fi
	say "round $round, $system: $* failed: $(sed -n '/"Errors": {/,/}/p' "$T/out.json" | tr -d '\n')"
	return 1
}

# value KEY [INNER]: a number in $T/out.json, of the whole and not of one process:
# its line is indented by one space.
value() {
	awk -v key="\"$1\":" -v inner="${2:+\"${2-}\":}" '
		!/^ "/ && !inside {next}
		$1 == key && inner == "" {print $2 + 0; exit}
		$1 == key {inside = 1}
		inside && $1 == inner {print $2 + 0; exit}' "$T/out.json"
}

# speed SYSTEM NAME ARGUMENTS…: MB/s and CPU-seconds a GB.
speed() {
	local system=$1 name=$2
	shift 2
	load "$system" "$@" || return 0
	record "$system" "${name}_mbs" "$(value MBPerS)"
	record "$system" "${name}_cpu" "$(value CPUSPerGB)"
}

# latency SYSTEM NAME ARGUMENTS…: milliseconds to the first byte.
latency() {
	local system=$1 name=$2
	shift 2
	load "$system" "$@" || return 0
	record "$system" "${name}_ms" "$(value TTFBMS P50)"
	record "$system" "${name}_p95" "$(value TTFBMS P95)"
}

# build_tools: the load generator and the site, which serves at WEB from then on.
build_tools() {
	(cd bench/tor/load && go build -o "$T/load" . && go build -o "$T/hop" ./hop && go build -o "$T/zeroserver" ./zeroserver)
	"$T/zeroserver" -listen "$WEB" &
	pids+=($!)
	await "$WEB"
}

# --- cepa

# await_line LOG WORDS PID: until a process has printed a line that begins so.
await_line() {
	for _ in $(seq 1200); do
		grep -q "^$2" "$1" && return 0
		kill -0 "$3" 2>/dev/null || die "it has ended: $(tail -3 "$1")"
		sleep 0.05
	done
	die "not within a minute: $2: $(tail -3 "$1")"
}

# cepa NAME ROLE FLAGS…: one process in the background, with its directory.
cepa() {
	local name=$1 role=$2
	shift 2
	"$CEPA" "$role" --network "$T/cepa/network.toml" --data-dir "$T/cepa/$name" "$@" >"$T/cepa/$name.log" 2>&1 &
	pids+=($!)
	pids_of[cepa]="${pids_of[cepa]:+${pids_of[cepa]},}$name=$!"
}

# start_cepa: 4 authorities, 8 relays of which 4 are exits, 1 client. The processes
# of the relays are relays, that of the client is client.
start_cepa() {
	[ -x "$CEPA" ] || die "no $CEPA: run make build first"
	local i file=$T/cepa/network.toml
	mkdir "$T/cepa"
	pids_of[cepa]="" relays=() socks_of[cepa]=127.0.0.1:$((BASE + 50))
	# A consensus at once, and no further one while it is measured.
	printf 'name = "bench"\ninterval = "1h"\n' >"$file"
	for i in 1 2 3 4; do
		"$CEPA" authority init --nickname "auth$i" --address "127.0.0.1:$((BASE + 50 + i))" --data-dir "$T/cepa/auth$i" >>"$file"
	done
	for i in 1 2 3 4; do
		cepa "auth$i" authority --allow-private-addresses --testing-flags --first-round 8
	done
	for i in 1 2 3 4 5 6 7 8; do
		local -a exit=()
		[ $i -gt 4 ] && exit=(--exit --exit-allow 127.0.0.0/8 --exit-policy 1-65535)
		# Each in a /16 of its own, as the rules for paths want it.
		cepa "relay$i" relay --listen "127.$((10 + i)).0.1:$((BASE + 60))" --nickname "relay$i" "${exit[@]}"
		relays+=($!)
	done
	cepa client client --allow-private-addresses --socks "${socks_of[cepa]}"
	client=$!
	await_line "$T/cepa/client.log" "ready" "$client"
	for i in 1 2 3 4 5 6 7 8; do await_line "$T/cepa/relay$i.log" "in the consensus" "${relays[i - 1]}"; done
}

# --- C Tor

tor_base() { case $1 in vanilla) echo $((BASE + 100)) ;; kist) echo $((BASE + 700)) ;; esac }

# tornet SYSTEM COMMAND ARGUMENTS…: tor/tornet.sh for one of the networks.
tornet() {
	local system=$1 command=$2
	shift 2
	BASE=$(tor_base "$system") HS_TARGET=$WEB bench/tor/tornet.sh "$command" "$T/$system" "$@"
}

# start_tor SYSTEM SCHEDULER
start_tor() {
	command -v tor >/dev/null || die "no tor: apt-get install tor, and stop the service that it starts"
	EXTRA="Schedulers $2" tornet "$1" up >"$T/$1.log" || die "tor ($1) does not start: $(tail -3 "$T/$1.log")"
	socks_of[$1]=127.0.0.1:$(($(tor_base "$1") + 331))
	pids_of[$1]=$(tornet "$1" pids | sed 's/,web=[0-9]*//') # the site is this program's
}
start_vanilla() { start_tor vanilla Vanilla; }
start_kist() { start_tor kist KIST; }

# table ROWS SYSTEM…: the samples as Markdown. ROWS are "metric text", parted by |.
table() {
	local rows=$1
	shift
	awk -F'|' -v systems="$*" -v rows="$rows" '
		function cell(s, m,   n, v, i, j, x, mid) {
			n = count[s, m]
			if (!n) return "–"
			for (i = 1; i <= n; i++) v[i] = sample[s, m, i] + 0
			for (i = 2; i <= n; i++) { x = v[i]; for (j = i - 1; j > 0 && v[j] > x; j--) v[j + 1] = v[j]; v[j + 1] = x }
			mid = (v[int((n + 1) / 2)] + v[int(n / 2) + 1]) / 2
			if (n == 1) return sprintf("%.4g", mid)
			return sprintf("%.4g (%.4g–%.4g)", mid, v[1], v[n])
		}
		{sample[$1, $2, ++count[$1, $2]] = $3}
		END {
			n = split(systems, column, " ")
			title["floor"] = "three bare TLS links"; title["cepa"] = "cepa"; title["vanilla"] = "C Tor, Vanilla"; title["kist"] = "C Tor, KIST (default)"
			line = "| |"; rule = "|---|"
			for (i = 1; i <= n; i++) { line = line " " title[column[i]] " |"; rule = rule "---|" }
			print line; print rule
			n_rows = split(rows, row, "|")
			for (r = 1; r <= n_rows; r++) {
				key = row[r]; sub(/ .*/, "", key)
				text = row[r]; sub(/^[^ ]* /, "", text)
				line = "| " text " |"
				for (i = 1; i <= n; i++) line = line " " cell(column[i], key) " |"
				print line
			}
		}' "$SAMPLES"
}

# machine: what a table is of.
machine() { echo "$(nproc) cores, $(awk -F': ' '/model name/ {print $2; exit}' /proc/cpuinfo)"; }
