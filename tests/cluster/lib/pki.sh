# shellcheck shell=bash
# Keys: a CA, the certificates of the API server, its clients and PostgreSQL, the key pair of the service accounts, and the
# kubeconfigs. Created once for each state directory.

PKI=$STATE/pki

ensure_pki() {
    [[ ! -d $PKI ]] || return 0
    rm -rf --one-file-system "$PKI.tmp"
    mkdir -p "$PKI.tmp"
    logged "$STATE/log/openssl.log" "cannot create certificates" make_certificates "$PKI.tmp"
    kubeconfig admin >"$STATE/admin.kubeconfig"
    kubeconfig node >"$STATE/node.kubeconfig"
    mv "$PKI.tmp" "$PKI"
}

make_certificates() {
    cd "$1" || return
    new_key ca
    openssl req -x509 -new -key ca.key -days 3650 -subj '/CN=syncctl-test CA' -out ca.crt \
        -addext 'keyUsage=critical,keyCertSign,cRLSign'
    new_key service-account
    openssl ec -in service-account.key -pubout -out service-account.pub
    signed apiserver /CN=kube-apiserver "DNS:localhost,DNS:kubernetes.default.svc,DNS:kubernetes.default,\
IP:127.0.0.1,IP:$API_SERVICE_ADDRESS,IP:$BRIDGE_ADDRESS"
    signed admin /O=system:masters/CN=syncctl-test-admin
    signed node "/O=system:nodes/CN=system:node:$NODE"
    signed postgres /CN=localhost "DNS:localhost,IP:127.0.0.1,IP:$BRIDGE_ADDRESS$(pod_host_name)"
}

# The name of this machine in your own cluster.
pod_host_name() {
    local host=${SYNCCTL_TEST_POD_HOST:-}
    if [[ $host =~ ^[0-9.]+$ ]]; then echo ",IP:$host"; elif [[ -n $host ]]; then echo ",DNS:$host"; fi
}

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }

# signed NAME SUBJECT [SUBJECT-ALT-NAMES]: a server certificate with names, else a client certificate.
signed() {
    local name=$1 subject=$2 names=${3:-}
    new_key "$name"
    {
        echo 'basicConstraints=critical,CA:FALSE'
        echo 'keyUsage=critical,digitalSignature'
        if [[ -n $names ]]; then
            printf 'extendedKeyUsage=serverAuth\nsubjectAltName=%s\n' "$names"
        else
            echo 'extendedKeyUsage=clientAuth'
        fi
    } >"$name.ext"
    openssl req -new -key "$name.key" -subj "$subject" -out "$name.csr"
    openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 \
        -extfile "$name.ext" -out "$name.crt"
}

kubeconfig() {
    local who=$1 dir=$PKI.tmp
    cat <<YAML
apiVersion: v1
kind: Config
current-context: syncctl-test
contexts:
- name: syncctl-test
  context: {cluster: syncctl-test, user: $who}
clusters:
- name: syncctl-test
  cluster:
    server: https://127.0.0.1:$API_PORT
    certificate-authority-data: $(base64 -w0 "$dir/ca.crt")
users:
- name: $who
  user:
    client-certificate-data: $(base64 -w0 "$dir/$who.crt")
    client-key-data: $(base64 -w0 "$dir/$who.key")
YAML
}

# api PATH: a GET request to the API server as the administrator; fails unless the status is 2xx.
api() {
    curl --silent --show-error --fail --max-time 5 --noproxy '*' --cacert "$PKI/ca.crt" \
        --cert "$PKI/admin.crt" --key "$PKI/admin.key" "https://127.0.0.1:$API_PORT$1"
}
