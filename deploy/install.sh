#!/bin/sh
# Installs, upgrades or removes the relay as a systemd service. From an unpacked release or a build:
#
#   sudo ./deploy/install.sh [install] [--no-start] [--binary FILE]
#   sudo ./deploy/install.sh uninstall [--purge]
#
#   install        (the default) installs or upgrades the relay, and waits until it is ready. If a new version does not
#                  become ready, the script puts the old one back. It is safe to run it again
#   uninstall      stops and removes the relay; blobs, the secret, settings and the user stay
#   --no-start     does not start or restart the relay: for images, or if you want to restart it later
#   --binary FILE  installs this vauchi-relay instead of the one in the release or in target/release
#   --purge        also deletes blobs, the secret, settings and the user. This cannot be undone. If a folder contains
#                  other files, the script keeps them and names the folder
#
# The script creates /etc/vauchi-relay/relay.env once and does not touch it again.
# Exit codes: 0 done, or nothing to do; 1 failed, and the last line says why; 2 wrong arguments.
set -eu

name=vauchi-relay
user=vauchi
binary=/usr/local/bin/$name
unit=/etc/systemd/system/$name.service
settings_dir=/etc/$name
settings=$settings_dir/relay.env
data_dir=/var/lib/$name
# The files that the relay creates in its data directory, and the files that an operator puts into settings_dir.
data="relay.db relay.db-wal relay.db-shm relay.db-journal relay.secret relay.lock relay.reserve-1 relay.reserve-2"
settings_files="relay.env relay-secret"
share=/usr/local/share
# The manual and the shell completions, each with the arguments that make the binary print it.
manuals="man/man1/$name.1 man
bash-completion/completions/$name completions bash
zsh/site-functions/_$name completions zsh
fish/vendor_completions.d/$name.fish completions fish"

here=$(dirname "$(readlink -f "$0")") # a release has a link to this script
root=$(dirname "$here")

say() { echo "$*"; }
fail() {
    echo "install.sh: $*" >&2
    exit 1
}
usage() {
    echo "install.sh: $1" >&2
    sed -n '4,5s/^# *//p' "$0" >&2
    exit 2
}

# --- what there is -------------------------------------------------------------------------------------------------

is_booted() { [ -d /run/systemd/system ]; } # not so in a chroot or a container image
is_active() { is_booted && systemctl is-active --quiet $name; }

look_around() {
    [ "$(id -u)" -eq 0 ] || fail "needs root; run it with sudo"
    for tool in systemctl systemd-run useradd getent install cmp; do
        command -v $tool >/dev/null || fail "needs $tool, which this machine does not have"
    done
    is_booted || [ $start = no ] || fail "systemd does not run here; use --no-start to install anyway"
    for packaged in /lib/systemd/system/$name.service /usr/lib/systemd/system/$name.service; do
        [ ! -e "$packaged" ] || fail "a package has installed $name ($packaged); upgrade or remove that package instead"
    done
}

find_binary() {
    if [ -z "$source" ]; then
        for source in "$root/$name" "$here/$name" "$root/bin/$name" "$root/target/release/$name" ''; do
            [ ! -f "$source" ] || break
        done
        [ -n "$source" ] || fail "there is no $name beside this script's folder and none in target/release;" \
            "build it with: cargo build --release"
    fi
    [ -x "$source" ] || fail "$source is missing or not executable"
    version=$("$source" --version) || fail "$source does not run on this machine ($(uname -sm))"
}

# --- install and upgrade -------------------------------------------------------------------------------------------

make_user() {
    if getent passwd $user >/dev/null; then return; fi
    useradd -r -s /bin/false $user
    say "made the user $user"
}

make_settings() {
    if [ -e $settings ]; then return; fi
    install -d -m 755 $settings_dir
    # It may contain a token. systemd reads it as root.
    install -m 600 "$here/systemd/relay.env" $settings
    say "made $settings, which shows every setting and sets none"
}

# Before anything is replaced: checks the settings with the user, the environment and the folder of the unit.
check_settings() {
    is_booted && [ $start = yes ] || return 0
    if [ -d $unit.d ]; then
        say "not checked beforehand: $unit.d may say other settings"
        return 0
    fi
    status=0
    told=$(systemd-run --quiet --wait --pipe --collect -p User=$user -p AmbientCapabilities=CAP_NET_BIND_SERVICE \
        -p StateDirectory=$name -p StateDirectoryMode=0700 -p LimitNOFILE=524288 \
        -p Environment=RELAY_DATA_DIR=$data_dir -p EnvironmentFile=-$settings "$binary.new" check 2>&1) || status=$?
    # If the relay runs, its folder and ports are in use, so only invalid settings (exit code 2) count.
    if [ $status -eq 0 ] || { [ $status -eq 1 ] && is_active; }; then return 0; fi
    echo "$told" | grep -v -e '^ok ' -e '^RELAY_[A-Z0-9_]* ' >&2 || true
    rm -f $binary.new
    fail "vauchi-relay check of $version failed, see above; nothing was replaced. Settings are in $settings"
}

# Replaces a file atomically, and keeps the old one until the new version is ready.
replace() { # replace NEW PLACE
    if [ -e "$2" ]; then ln -f "$2" "$2.old"; fi
    sync "$1"
    mv -f "$1" "$2"
    changed=yes
}

put_in_place() {
    changed=no
    if cmp -s $binary.new $binary; then
        rm -f $binary.new
    else
        before=$($binary --version 2>/dev/null) || before=
        replace $binary.new $binary
        say "installed $binary: $version${before:+, before: $before}"
    fi
    if ! cmp -s "$here/systemd/$name.service" $unit; then
        install -m 644 "$here/systemd/$name.service" $unit.new
        replace $unit.new $unit
        say "installed $unit"
        if is_booted; then systemctl daemon-reload; fi
    fi
    if ! systemctl is-enabled --quiet $name 2>/dev/null; then
        systemctl enable --quiet $name
        say "enabled $name, so that it starts at boot"
    fi
}

# Installs the manuals of the version that stays.
put_manuals() {
    echo "$manuals" | while read -r file arguments; do
        file=$share/$file
        mkdir -p "$(dirname "$file")"
        # shellcheck disable=SC2086 # several words
        $binary $arguments >"$file.new" || fail "$version does not print its manual ($binary $arguments)"
        if cmp -s "$file.new" "$file"; then
            rm -f "$file.new"
            continue
        fi
        mv -f "$file.new" "$file"
        case $file in *.1) say "installed $file, and completions for bash, zsh and fish" ;; esac
    done
}

# Whether the running relay is the installed one; it may have been upgraded with --no-start.
is_current() {
    is_active && [ "$(readlink "/proc/$(systemctl show -p MainPID --value $name)/exe")" = $binary ]
}

# Uses the environment of the running process, wherever its settings come from.
is_ready() {
    xargs -0 -a "/proc/$(systemctl show -p MainPID --value $name)/environ" \
        sh -c 'exec env -i "$@" '$binary' healthcheck --ready' sh 2>/dev/null
}

# `restart` returns when the relay has reported that it serves; then storage must answer, too.
becomes_ready() {
    systemctl restart $name || return 1
    tries=30
    while [ $tries -gt 0 ]; do
        if is_active && is_ready; then return 0; fi
        tries=$((tries - 1))
        sleep 1
    done
    return 1
}

go_back() {
    journalctl -u $name -n 15 --no-pager -o cat >&2 || true
    [ -e $binary.old ] || [ -e $unit.old ] ||
        fail "$name is installed and does not become ready; its log is above. It tries again by itself"
    [ ! -e $binary.old ] || mv -f $binary.old $binary
    [ ! -e $unit.old ] || mv -f $unit.old $unit
    systemctl daemon-reload
    becomes_ready || fail "$version does not become ready (its log is above), and neither does the version before," \
        "which is in place again: journalctl -u $name. If the new one changed the database, restore the backup"
    fail "$version does not become ready (its log is above); the version before is in place and serves again"
}

install_relay() {
    look_around
    for shipped in "$here/systemd/$name.service" "$here/systemd/relay.env"; do
        [ -f "$shipped" ] || fail "$shipped is missing; run this script in an unpacked release or a clone"
    done
    find_binary
    # Leftovers of an interrupted upgrade are not a version to go back to.
    rm -f $binary.old $unit.old
    make_user
    make_settings
    install -d -m 755 /usr/local/bin
    install -m 755 "$source" $binary.new
    check_settings
    put_in_place
    if [ $start = no ]; then
        put_manuals
        say "$version is installed; it was not started"
    elif [ $changed = no ] && is_current; then
        is_ready || fail "nothing to do: $version is installed and runs, but is not ready: journalctl -u $name"
        put_manuals
        say "nothing to do: $version is installed and ready"
    else
        becomes_ready || go_back
        put_manuals
        say "$version is ready; its log: journalctl -u $name; its settings: $settings"
    fi
    rm -f $binary.old $unit.old
}

# --- uninstall -----------------------------------------------------------------------------------------------------

remove() { # remove FILE…: says what was there
    for what in "$@"; do
        if [ -e "$what" ] || [ -L "$what" ]; then
            rm -f "$what"
            say "removed $what"
        fi
    done
}

# Deletes no other files: the folder may be a link to a disk that holds more.
remove_folder() { # remove_folder FOLDER NAME…: these files in it, and the folder if it is empty then
    link=$1
    folder=$(readlink -f "$1")
    shift
    [ -d "$folder" ] || return 0
    for what in "$@"; do rm -f "$folder/$what"; done
    [ ! -L "$link" ] || remove "$link"
    if rmdir "$folder" 2>/dev/null; then
        say "removed $folder"
    elif [ -z "$(ls -A "$folder")" ]; then
        say "emptied $folder, which is a disk of its own"
    else
        say "kept $folder: $name did not make what is in it: $(find "$folder" -mindepth 1 -maxdepth 1 -printf '%f ')"
    fi
}

uninstall_relay() {
    [ "$(id -u)" -eq 0 ] || fail "needs root; run it with sudo"
    if [ -e $unit ]; then
        if is_active; then
            systemctl stop $name
            say "stopped $name"
        fi
        systemctl disable --quiet $name
    fi
    remove $unit $unit.old $binary $binary.old $binary.new
    echo "$manuals" | while read -r file _; do remove "$share/$file"; done
    if is_booted; then
        systemctl daemon-reload
        systemctl reset-failed $name 2>/dev/null || true
    fi
    if [ $purge = yes ]; then
        # shellcheck disable=SC2086 # several names
        remove_folder $data_dir $data
        # shellcheck disable=SC2086
        remove_folder $settings_dir $settings_files
        remove_folder $unit.d override.conf # as `systemctl edit` calls it
        if getent passwd $user >/dev/null; then
            userdel $user
            say "removed the user $user"
        fi
        say "$name is gone, with its blobs, secret and settings"
    else
        say "$name is uninstalled; $data_dir, $settings_dir and the user $user stay (--purge removes them)"
    fi
}

# --- arguments -----------------------------------------------------------------------------------------------------

action=
start=yes
purge=no
source=
while [ $# -gt 0 ]; do
    case $1 in
        install | uninstall)
            [ -z "$action" ] || usage "$action or $1?"
            action=$1
            ;;
        --no-start) start=no ;;
        --purge) purge=yes ;;
        --binary)
            [ $# -gt 1 ] || usage "--binary needs a file"
            source=$2
            shift
            ;;
        -h | --help)
            sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) usage "what is $1?" ;;
    esac
    shift
done
action=${action:-install}
case $action in
    install)
        [ $purge = no ] || usage "--purge belongs to uninstall"
        install_relay
        ;;
    uninstall)
        [ "$start$source" = yes ] || usage "--no-start and --binary belong to install"
        uninstall_relay
        ;;
esac
