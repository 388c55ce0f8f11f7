# shellcheck shell=bash
# The content of the images. Each recipe_* function prints the path of an archive, which it builds unless it is cached. The
# text of these functions is part of the cache keys.

LAYERS=$CACHE/layers
ARCHIVES=$CACHE/archives

# Name and version of both the image and the PyPI package.
# shellcheck disable=SC2034 # read by "images"
PYTHON_CONNECTORS=(source-faker=7.2.1 source-smoke-test=0.1.2 source-hardcoded-records=0.0.48)

key_of() { sha256sum | cut -c 1-16; }

# A layer depends only on its content: it has no times and no user names.
tar_layer() {
    tar --create --file "$2" --directory "$1" --sort name --mtime @0 --numeric-owner "${@:3}" .
}

# archive_path NAME KEY: the path of an image's archive.
archive_path() { echo "$ARCHIVES/$1-$2.tar"; }

# pack NAME:TAG ARCHIVE CONFIG LAYER…: the digest next to the archive marks it as complete.
pack() {
    local archive=$2 name digest
    name=$(basename "$archive" .tar)
    mkdir -p "$ARCHIVES"
    rm -f "$ARCHIVES/${name%-*}"-????????????????.{tar,digest}
    digest=$("$CLUSTER_DIR/pack-image" "$@")
    echo "$1 $digest" >"${archive%.tar}.digest"
}

is_packed() { [[ -e $1 && -e ${1%.tar}.digest ]]; }

base_files() {
    mkdir -p "$1"/{etc,airbyte,proc,sys,dev}
    mkdir -m 1777 "$1/tmp"
    printf 'root:x:0:0:root:/root:/bin/sh\nairbyte:x:1000:1000:airbyte:/airbyte:/bin/sh\n' >"$1/etc/passwd"
    printf 'root:x:0:\nairbyte:x:1000:\n' >"$1/etc/group"
}

recipe_pause() {
    local archive work
    archive=$(archive_path pause "$(key_of <"$CLUSTER_DIR/pause.c")")
    if ! is_packed "$archive"; then
        work=$(mktemp -d "$CACHE/layer.XXXXXX")
        chmod 755 "$work"
        gcc -Os -static -s -o "$work/pause" "$CLUSTER_DIR/pause.c"
        tar_layer "$work" "$work.tar" --owner 0 --group 0
        pack "$PAUSE_IMAGE" "$archive" '{"Cmd":["/pause"]}' "$work.tar"
        rm -rf --one-file-system "$work" "$work.tar"
    fi
    echo "$archive"
}

# The layer of all connectors written in sh.
busybox_layer() {
    local layer work
    layer=$LAYERS/busybox-$( (cat /bin/busybox; declare -f base_files busybox_layer) | key_of).tar
    if [[ ! -e $layer ]]; then
        mkdir -p "$LAYERS"
        work=$(mktemp -d "$CACHE/layer.XXXXXX")
        mkdir -p "$work/bin"
        chmod 755 "$work"
        base_files "$work"
        cp /bin/busybox "$work/bin/busybox"
        /bin/busybox --list | grep -vx busybox | while read -r applet; do ln -s busybox "$work/bin/$applet"; done
        tar_layer "$work" "$work.tar" --owner 0 --group 0
        rm -f "${layer%-*}"-*.tar # of older recipes
        mv "$work.tar" "$layer"
        rm -rf --one-file-system "$work"
    fi
    echo "$layer"
}

# connectors/NAME.sh becomes syncctl-test/NAME:1. Comment lines of the script that configure the image:
#   # env: KEY=VALUE    # user: 1000    # no-entrypoint
recipe_script() {
    local name=$1 script=$CLUSTER_DIR/connectors/$1.sh layer archive work config
    layer=$(busybox_layer)
    archive=$(archive_path "$name" "$( (cat "$script"; echo "$layer"; declare -f recipe_script) | key_of)")
    if ! is_packed "$archive"; then
        work=$(mktemp -d "$CACHE/layer.XXXXXX")
        chmod 755 "$work"
        install -m 0755 "$script" "$work/connector.sh"
        tar_layer "$work" "$work.tar" --owner 0 --group 0
        config=$(jq --null-input --rawfile script "$script" '
            [$script | split("\n")[] | select(startswith("# ")) | ltrimstr("# ")] as $lines
            | [$lines[] | select(startswith("env: ")) | ltrimstr("env: ")] as $env
            | [$lines[] | select(startswith("user: ")) | ltrimstr("user: ")] as $user
            | if $lines | index("no-entrypoint") then [] else ["AIRBYTE_ENTRYPOINT=/connector.sh"] end
            | {Env: (["PATH=/bin"] + . + $env), User: ($user[0] // ""), WorkingDir: "/airbyte",
               Entrypoint: ["/connector.sh"]}')
        pack "syncctl-test/$name:1" "$archive" "$config" "$layer" "$work.tar"
        rm -rf --one-file-system "$work" "$work.tar"
    fi
    echo "$archive"
}

# The layer of all Python connectors: the Python of this Debian release, which fits what the machine's pip installs.
python_layer() {
    local layer work
    layer=$LAYERS/python-$( (/usr/bin/python3 --version; uname -m; declare -f base_files python_layer) | key_of).tar
    if [[ ! -e $layer ]]; then
        say "building the root file system of the Python connectors"
        mkdir -p "$LAYERS"
        work=$(mktemp -d "$CACHE/layer.XXXXXX")
        chmod 755 "$work"
        apt-get indextargets --format "deb \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" \
            'Created-By: Packages' 'Origin: Debian' | sort -u >"$work.list"
        # No hook may clean up in here: the machine's own /dev is mounted into the folder while hooks run.
        # The dpkg option keeps what no connector reads out of the image.
        # shellcheck disable=SC2016 # $1 is for the hook's own shell
        gently mmdebstrap --quiet --mode root --variant essential --include python3,libstdc++6,ca-certificates,tzdata \
            --dpkgopt 'path-exclude=/usr/share/{doc,man,info,locale,lintian}/*' \
            --customize-hook 'ln -s python3 "$1/usr/bin/python"' \
            "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$work" "$work.list" >&2
        mkdir -p "$work/airbyte"
        echo 'airbyte:x:1000:1000:airbyte:/airbyte:/bin/sh' >>"$work/etc/passwd"
        echo 'airbyte:x:1000:' >>"$work/etc/group"
        chown 1000:1000 "$work/airbyte"
        tar_layer "$work" "$work.tar" --exclude './dev/*' --exclude './var/cache/apt/*' --exclude './var/lib/apt/*'
        rm -f "${layer%-*}"-*.tar # of older recipes
        mv "$work.tar" "$layer"
        rm -rf --one-file-system "$work" "$work.list"
    fi
    echo "$layer"
}

# A connector from PyPI as airbyte/NAME:VERSION, with the layout of the published images.
recipe_python() {
    local name=$1 version=$2 archive work module packages
    archive=$(archive_path "$name" "$( (/usr/bin/python3 --version; echo "$version"
        declare -f python_layer recipe_python) | key_of)")
    if ! is_packed "$archive"; then
        local layer
        layer=$(python_layer)
        say "building airbyte/$name:$version"
        work=$(mktemp -d "$CACHE/layer.XXXXXX")
        chmod 755 "$work"
        packages=$work/usr/local/lib/python3.11/dist-packages # part of Debian's module path
        mkdir -p "$packages" "$work/airbyte/integration_code"
        gently /usr/bin/python3 -m pip install --quiet --root-user-action ignore --no-compile --target "$packages" \
            "airbyte-$name==$version" >&2
        # Tests, headers and type hints are a third of the volume.
        find "$packages" -depth -type d \( -name tests -o -name include \) -exec rm -rf {} +
        find "$packages" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.a' \) -delete
        rm -rf --one-file-system "${packages:?}/bin"
        module=${name//-/_}
        printf 'from %s.run import run\n\nrun()\n' "$module" >"$work/airbyte/integration_code/main.py"
        # Compiled ahead and believed without a look at the times, which the layer does not keep: a Pod may not be
        # able to write beside the sources, and would compile everything at each start.
        gently /usr/bin/python3 -m compileall -q --invalidation-mode unchecked-hash \
            -s "$work" -p / "$work" >/dev/null || true # some packages ship templates that are no Python
        tar_layer "$work" "$work.tar" --owner 0 --group 0
        pack "airbyte/$name:$version" "$archive" '{
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "PYTHONUNBUFFERED=1",
                    "AIRBYTE_ENTRYPOINT=python /airbyte/integration_code/main.py"],
            "User": "1000", "WorkingDir": "/airbyte",
            "Entrypoint": ["python", "/airbyte/integration_code/main.py"]
        }' "$layer" "$work.tar"
        rm -rf --one-file-system "$work" "$work.tar"
    fi
    echo "$archive"
}
