# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_syncctl_global_optspecs
    string join \n h/help V/version
end

function __fish_syncctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_syncctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_syncctl_using_subcommand
    set -l cmd (__fish_syncctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c syncctl -n "__fish_syncctl_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_needs_command" -s V -l version -d 'Print version'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "spec" -d 'Print a connector\'s specification'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "check" -d 'Test a connector\'s configuration'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "discover" -d 'List the streams that a configuration gives access to'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "read" -d 'Read rows from a connector and load them into the destination'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "serve" -d 'Serve the same tasks over HTTP'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "image" -d 'Write this program as a container image to stdout'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "token" -d 'Create a token for `syncctl serve`, and its salted hash for SYNCCTL_AUTH_TOKENS'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "db" -d 'Use the embedded database: a private PostgreSQL server in the state directory'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "generate" -d 'Write shell completions, man pages or the table of settings'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "sidecar" -d 'Capture a connector\'s output; runs next to the connector'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "supervise" -d 'Supervise a task that runs on this machine'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "isolate" -d 'Run a program isolated from this machine'
complete -c syncctl -n "__fish_syncctl_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l package -d 'Connector image without its version' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l version -d 'Version of --package' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l timeout -d 'Timeout of the task, e.g. 90s, 10m, 2h [default: 10m; for read SYNCCTL_TASK_TIMEOUT_HOURS]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l exec -d 'With --local: run this command instead of the image, e.g. \'python main.py\', for a connector under development' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -s o -l output -d 'Format of the result; json and yaml print failures, too [default: text on a terminal, else json]' -r -f -a "text\t'Indented JSON, for reading'
json\t'One line of JSON, for programs; failures are also printed as JSON'
yaml\t'YAML; failures are also printed as YAML'"
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l database-url -d 'Postgres database of results, logs and states; set it in the environment, where other users cannot see it [default: with --local, an embedded database: see `syncctl db`]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l sidecar-database-url -d 'The same database as Pods reach it [default: the database URL]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l own-schema -d 'Schema of that database for tables that other programs do not know; created where the role may [default: syncctl]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l sidecar-image -d 'Image with the sidecar, such as the one that `syncctl image` writes [default: in a Pod, the image of this program]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l init-image -d 'Image with a shell that prepares the files for a foreign sidecar such as jitsucom/sidecar' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l image-policy -d 'Connector images that may run, whoever asks: patterns such as airbyte/*:7.* or *@sha256:*, separated by commas, and the word require-digest [default: every image]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l bulker-url -d 'Bulker instance that takes the rows of reads without a destination, or with one of a type that is not loaded otherwise' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l bulker-auth-token -d 'Token for that Bulker instance; set it in the environment, where other users cannot see it' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l destination-hosts -d 'Hosts that callers\' destinations may be at: names, *.suffixes, addresses and networks (10.0.0.0/8), each with an optional :port, and directories of Unix sockets; separated by commas [default: any; with `serve` *, which is any but link-local addresses, cloud metadata and Unix sockets]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l kubernetes-client-config -d 'Kubeconfig: a path, its YAML text, an http or https address (of `kubectl proxy`), or `local` for the service account of this Pod' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l kubeconfig -d 'Kubeconfig file [default: what kubectl would use]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l context -d 'Context of the kubeconfig [default: the current context]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l namespace -d 'Namespace of the Pods [default: the context\'s namespace, else default]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l kubernetes-node-selector -d 'Nodes for the Pods, as a JSON object of labels' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l pods-service-account -d 'Service account of the Pods; its token is not mounted' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l container-status-check-seconds -d 'How often Pods are listed, in addition to the watch [default: 10]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l container-init-timeout-seconds -d 'How long a task may take to start, counted from its creation; with --local this includes the installation [default: 180, with --local 600]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l silence-seconds -d 'How long a connector may write nothing before its task fails [default: 8000]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l container-grace-shutdown-seconds -d 'How long a container may take to end after TERM [default: 60]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l task-timeout-hours -d 'How long a read may take; --timeout is finer [default: 48]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l source-cpu-request-millicores -d 'CPU reserved for the connector [default: 100]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l source-cpu-limit-millicores -d 'CPU limit of the connector; 0 means none [default: 1000, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l source-memory-request-mi -d 'Memory reserved for the connector [default: 256]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l source-memory-limit-mi -d 'Memory limit of the connector; 0 means none [default: 8192]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l sidecar-cpu-request-millicores -d 'CPU reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l sidecar-cpu-limit-millicores -d 'CPU limit of the sidecar; 0 means none [default: 500, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l sidecar-memory-request-mi -d 'Memory reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l sidecar-memory-limit-mi -d 'Memory limit of the sidecar; 0 means none [default: 4096]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l source-ephemeral-storage-limit-mi -d 'Limit of what the connector stores on its node; 0 means none [default: 20480]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l sidecar-ephemeral-storage-limit-mi -d 'Limit of what the sidecar stores on its node; 0 means none [default: 1024]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l source-capabilities -d 'Linux capabilities that the connector\'s container keeps, separated by commas, for images that do not run without: CHOWN,SETGID,SETUID' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l source-java-opts -d 'Options for connectors that run on a JVM [default: -Xmx7000m]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l log-level -d 'Least level of the program\'s own log: DEBUG, INFO, WARN or ERROR [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l db-log-level -d 'Least level in the table task_log [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l engine -d 'Where tasks run: kubernetes or local [default: kubernetes]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l local-runtime -d 'Where connectors come from with --local: auto, docker, podman or python (the package of the same name) [default: auto]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l container-read-only -d 'Whether images that --local runs can write to /tmp, /var/tmp, /run, /root and /home alone; false for one that needs more [default: true]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l state-dir -d 'Folder of what this machine must keep: the embedded database and the tasks that run with --local [default: $XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l cache-dir -d 'Folder of what can be fetched again: the connectors that --local installs [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l postgres-bin -d 'Folder of the programs postgres and initdb; no other folder is searched then [default: PATH, then where packages install them]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -s q -l quiet -d 'Show no progress'
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -s v -l verbose -d 'Log more; up to -vvv, which includes the logs of libraries'
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -l local -d 'Run tasks on this machine, without a cluster: the same as SYNCCTL_ENGINE=local'
complete -c syncctl -n "__fish_syncctl_using_subcommand spec" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l package -d 'Connector image without its version' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l version -d 'Version of --package' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l config -d 'Configuration of the connector: a JSON or YAML file, or - for stdin' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l storage-key -d 'Key under which the result is stored [default: a hash of the image and the configuration]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l timeout -d 'Timeout of the task, e.g. 90s, 10m, 2h [default: 10m; for read SYNCCTL_TASK_TIMEOUT_HOURS]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l exec -d 'With --local: run this command instead of the image, e.g. \'python main.py\', for a connector under development' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -s o -l output -d 'Format of the result; json and yaml print failures, too [default: text on a terminal, else json]' -r -f -a "text\t'Indented JSON, for reading'
json\t'One line of JSON, for programs; failures are also printed as JSON'
yaml\t'YAML; failures are also printed as YAML'"
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l database-url -d 'Postgres database of results, logs and states; set it in the environment, where other users cannot see it [default: with --local, an embedded database: see `syncctl db`]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l sidecar-database-url -d 'The same database as Pods reach it [default: the database URL]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l own-schema -d 'Schema of that database for tables that other programs do not know; created where the role may [default: syncctl]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l sidecar-image -d 'Image with the sidecar, such as the one that `syncctl image` writes [default: in a Pod, the image of this program]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l init-image -d 'Image with a shell that prepares the files for a foreign sidecar such as jitsucom/sidecar' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l image-policy -d 'Connector images that may run, whoever asks: patterns such as airbyte/*:7.* or *@sha256:*, separated by commas, and the word require-digest [default: every image]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l bulker-url -d 'Bulker instance that takes the rows of reads without a destination, or with one of a type that is not loaded otherwise' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l bulker-auth-token -d 'Token for that Bulker instance; set it in the environment, where other users cannot see it' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l destination-hosts -d 'Hosts that callers\' destinations may be at: names, *.suffixes, addresses and networks (10.0.0.0/8), each with an optional :port, and directories of Unix sockets; separated by commas [default: any; with `serve` *, which is any but link-local addresses, cloud metadata and Unix sockets]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l kubernetes-client-config -d 'Kubeconfig: a path, its YAML text, an http or https address (of `kubectl proxy`), or `local` for the service account of this Pod' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l kubeconfig -d 'Kubeconfig file [default: what kubectl would use]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l context -d 'Context of the kubeconfig [default: the current context]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l namespace -d 'Namespace of the Pods [default: the context\'s namespace, else default]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l kubernetes-node-selector -d 'Nodes for the Pods, as a JSON object of labels' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l pods-service-account -d 'Service account of the Pods; its token is not mounted' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l container-status-check-seconds -d 'How often Pods are listed, in addition to the watch [default: 10]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l container-init-timeout-seconds -d 'How long a task may take to start, counted from its creation; with --local this includes the installation [default: 180, with --local 600]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l silence-seconds -d 'How long a connector may write nothing before its task fails [default: 8000]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l container-grace-shutdown-seconds -d 'How long a container may take to end after TERM [default: 60]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l task-timeout-hours -d 'How long a read may take; --timeout is finer [default: 48]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l source-cpu-request-millicores -d 'CPU reserved for the connector [default: 100]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l source-cpu-limit-millicores -d 'CPU limit of the connector; 0 means none [default: 1000, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l source-memory-request-mi -d 'Memory reserved for the connector [default: 256]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l source-memory-limit-mi -d 'Memory limit of the connector; 0 means none [default: 8192]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l sidecar-cpu-request-millicores -d 'CPU reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l sidecar-cpu-limit-millicores -d 'CPU limit of the sidecar; 0 means none [default: 500, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l sidecar-memory-request-mi -d 'Memory reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l sidecar-memory-limit-mi -d 'Memory limit of the sidecar; 0 means none [default: 4096]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l source-ephemeral-storage-limit-mi -d 'Limit of what the connector stores on its node; 0 means none [default: 20480]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l sidecar-ephemeral-storage-limit-mi -d 'Limit of what the sidecar stores on its node; 0 means none [default: 1024]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l source-capabilities -d 'Linux capabilities that the connector\'s container keeps, separated by commas, for images that do not run without: CHOWN,SETGID,SETUID' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l source-java-opts -d 'Options for connectors that run on a JVM [default: -Xmx7000m]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l log-level -d 'Least level of the program\'s own log: DEBUG, INFO, WARN or ERROR [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l db-log-level -d 'Least level in the table task_log [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l engine -d 'Where tasks run: kubernetes or local [default: kubernetes]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l local-runtime -d 'Where connectors come from with --local: auto, docker, podman or python (the package of the same name) [default: auto]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l container-read-only -d 'Whether images that --local runs can write to /tmp, /var/tmp, /run, /root and /home alone; false for one that needs more [default: true]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l state-dir -d 'Folder of what this machine must keep: the embedded database and the tasks that run with --local [default: $XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l cache-dir -d 'Folder of what can be fetched again: the connectors that --local installs [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l postgres-bin -d 'Folder of the programs postgres and initdb; no other folder is searched then [default: PATH, then where packages install them]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -s q -l quiet -d 'Show no progress'
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -s v -l verbose -d 'Log more; up to -vvv, which includes the logs of libraries'
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -l local -d 'Run tasks on this machine, without a cluster: the same as SYNCCTL_ENGINE=local'
complete -c syncctl -n "__fish_syncctl_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l package -d 'Connector image without its version' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l version -d 'Version of --package' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l config -d 'Configuration of the connector: a JSON or YAML file, or - for stdin' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l storage-key -d 'Key under which the result is stored [default: a hash of the image and the configuration]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l timeout -d 'Timeout of the task, e.g. 90s, 10m, 2h [default: 10m; for read SYNCCTL_TASK_TIMEOUT_HOURS]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l exec -d 'With --local: run this command instead of the image, e.g. \'python main.py\', for a connector under development' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -s o -l output -d 'Format of the result; json and yaml print failures, too [default: text on a terminal, else json]' -r -f -a "text\t'Indented JSON, for reading'
json\t'One line of JSON, for programs; failures are also printed as JSON'
yaml\t'YAML; failures are also printed as YAML'"
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l database-url -d 'Postgres database of results, logs and states; set it in the environment, where other users cannot see it [default: with --local, an embedded database: see `syncctl db`]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l sidecar-database-url -d 'The same database as Pods reach it [default: the database URL]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l own-schema -d 'Schema of that database for tables that other programs do not know; created where the role may [default: syncctl]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l sidecar-image -d 'Image with the sidecar, such as the one that `syncctl image` writes [default: in a Pod, the image of this program]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l init-image -d 'Image with a shell that prepares the files for a foreign sidecar such as jitsucom/sidecar' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l image-policy -d 'Connector images that may run, whoever asks: patterns such as airbyte/*:7.* or *@sha256:*, separated by commas, and the word require-digest [default: every image]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l bulker-url -d 'Bulker instance that takes the rows of reads without a destination, or with one of a type that is not loaded otherwise' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l bulker-auth-token -d 'Token for that Bulker instance; set it in the environment, where other users cannot see it' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l destination-hosts -d 'Hosts that callers\' destinations may be at: names, *.suffixes, addresses and networks (10.0.0.0/8), each with an optional :port, and directories of Unix sockets; separated by commas [default: any; with `serve` *, which is any but link-local addresses, cloud metadata and Unix sockets]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l kubernetes-client-config -d 'Kubeconfig: a path, its YAML text, an http or https address (of `kubectl proxy`), or `local` for the service account of this Pod' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l kubeconfig -d 'Kubeconfig file [default: what kubectl would use]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l context -d 'Context of the kubeconfig [default: the current context]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l namespace -d 'Namespace of the Pods [default: the context\'s namespace, else default]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l kubernetes-node-selector -d 'Nodes for the Pods, as a JSON object of labels' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l pods-service-account -d 'Service account of the Pods; its token is not mounted' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l container-status-check-seconds -d 'How often Pods are listed, in addition to the watch [default: 10]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l container-init-timeout-seconds -d 'How long a task may take to start, counted from its creation; with --local this includes the installation [default: 180, with --local 600]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l silence-seconds -d 'How long a connector may write nothing before its task fails [default: 8000]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l container-grace-shutdown-seconds -d 'How long a container may take to end after TERM [default: 60]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l task-timeout-hours -d 'How long a read may take; --timeout is finer [default: 48]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l source-cpu-request-millicores -d 'CPU reserved for the connector [default: 100]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l source-cpu-limit-millicores -d 'CPU limit of the connector; 0 means none [default: 1000, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l source-memory-request-mi -d 'Memory reserved for the connector [default: 256]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l source-memory-limit-mi -d 'Memory limit of the connector; 0 means none [default: 8192]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l sidecar-cpu-request-millicores -d 'CPU reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l sidecar-cpu-limit-millicores -d 'CPU limit of the sidecar; 0 means none [default: 500, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l sidecar-memory-request-mi -d 'Memory reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l sidecar-memory-limit-mi -d 'Memory limit of the sidecar; 0 means none [default: 4096]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l source-ephemeral-storage-limit-mi -d 'Limit of what the connector stores on its node; 0 means none [default: 20480]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l sidecar-ephemeral-storage-limit-mi -d 'Limit of what the sidecar stores on its node; 0 means none [default: 1024]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l source-capabilities -d 'Linux capabilities that the connector\'s container keeps, separated by commas, for images that do not run without: CHOWN,SETGID,SETUID' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l source-java-opts -d 'Options for connectors that run on a JVM [default: -Xmx7000m]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l log-level -d 'Least level of the program\'s own log: DEBUG, INFO, WARN or ERROR [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l db-log-level -d 'Least level in the table task_log [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l engine -d 'Where tasks run: kubernetes or local [default: kubernetes]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l local-runtime -d 'Where connectors come from with --local: auto, docker, podman or python (the package of the same name) [default: auto]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l container-read-only -d 'Whether images that --local runs can write to /tmp, /var/tmp, /run, /root and /home alone; false for one that needs more [default: true]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l state-dir -d 'Folder of what this machine must keep: the embedded database and the tasks that run with --local [default: $XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l cache-dir -d 'Folder of what can be fetched again: the connectors that --local installs [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l postgres-bin -d 'Folder of the programs postgres and initdb; no other folder is searched then [default: PATH, then where packages install them]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -s q -l quiet -d 'Show no progress'
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -s v -l verbose -d 'Log more; up to -vvv, which includes the logs of libraries'
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -l local -d 'Run tasks on this machine, without a cluster: the same as SYNCCTL_ENGINE=local'
complete -c syncctl -n "__fish_syncctl_using_subcommand discover" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l package -d 'Connector image without its version' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l version -d 'Version of --package' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l config -d 'Configuration of the connector: a JSON or YAML file, or - for stdin' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l catalog -d 'Configured catalog: which streams to read, and how. A catalog from `discover` reads every stream' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l destination-config -d 'Destination of the rows: a file with "destinationType" and its credentials [default: the Bulker of SYNCCTL_BULKER_URL, else the embedded database if it is in use]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l sync-id -d 'Id of the sync: states are stored under it' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l state -d 'State to resume from: a file with Airbyte state messages, or `db` for the state stored for the sync [default: read from scratch]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l task-id -d 'Id of the task, unique among all tasks [default: a new UUID]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l target-namespace -d 'Schema of the tables; ${SOURCE_NAMESPACE} is the stream\'s namespace. ${LEGACY} uses the default schema and puts the namespace into the table names' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l table-name-prefix -d 'Prefix of all table names; ${SOURCE_NAMESPACE} is the stream\'s namespace. Not added to a "table_name" in the catalog' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l cdc-deletion -d 'What becomes of rows that a CDC source marks as deleted (_ab_cdc_deleted_at), where rows are merged: soft keeps them with their mark, hard deletes them [default: "cdcDeletion" of the destination\'s configuration, else soft; hard in the embedded database]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l max-records -d 'Stop with success after this many records of all streams together. A stream that is cut off replaces no rows: if its table has rows, the new ones are dropped' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l timeout -d 'Timeout of the task, e.g. 90s, 10m, 2h [default: 10m; for read SYNCCTL_TASK_TIMEOUT_HOURS]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l exec -d 'With --local: run this command instead of the image, e.g. \'python main.py\', for a connector under development' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -s o -l output -d 'Format of the result; json and yaml print failures, too [default: text on a terminal, else json]' -r -f -a "text\t'Indented JSON, for reading'
json\t'One line of JSON, for programs; failures are also printed as JSON'
yaml\t'YAML; failures are also printed as YAML'"
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l database-url -d 'Postgres database of results, logs and states; set it in the environment, where other users cannot see it [default: with --local, an embedded database: see `syncctl db`]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l sidecar-database-url -d 'The same database as Pods reach it [default: the database URL]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l own-schema -d 'Schema of that database for tables that other programs do not know; created where the role may [default: syncctl]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l sidecar-image -d 'Image with the sidecar, such as the one that `syncctl image` writes [default: in a Pod, the image of this program]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l init-image -d 'Image with a shell that prepares the files for a foreign sidecar such as jitsucom/sidecar' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l image-policy -d 'Connector images that may run, whoever asks: patterns such as airbyte/*:7.* or *@sha256:*, separated by commas, and the word require-digest [default: every image]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l bulker-url -d 'Bulker instance that takes the rows of reads without a destination, or with one of a type that is not loaded otherwise' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l bulker-auth-token -d 'Token for that Bulker instance; set it in the environment, where other users cannot see it' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l destination-hosts -d 'Hosts that callers\' destinations may be at: names, *.suffixes, addresses and networks (10.0.0.0/8), each with an optional :port, and directories of Unix sockets; separated by commas [default: any; with `serve` *, which is any but link-local addresses, cloud metadata and Unix sockets]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l kubernetes-client-config -d 'Kubeconfig: a path, its YAML text, an http or https address (of `kubectl proxy`), or `local` for the service account of this Pod' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l kubeconfig -d 'Kubeconfig file [default: what kubectl would use]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l context -d 'Context of the kubeconfig [default: the current context]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l namespace -d 'Namespace of the Pods [default: the context\'s namespace, else default]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l kubernetes-node-selector -d 'Nodes for the Pods, as a JSON object of labels' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l pods-service-account -d 'Service account of the Pods; its token is not mounted' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l container-status-check-seconds -d 'How often Pods are listed, in addition to the watch [default: 10]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l container-init-timeout-seconds -d 'How long a task may take to start, counted from its creation; with --local this includes the installation [default: 180, with --local 600]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l silence-seconds -d 'How long a connector may write nothing before its task fails [default: 8000]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l container-grace-shutdown-seconds -d 'How long a container may take to end after TERM [default: 60]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l task-timeout-hours -d 'How long a read may take; --timeout is finer [default: 48]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l source-cpu-request-millicores -d 'CPU reserved for the connector [default: 100]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l source-cpu-limit-millicores -d 'CPU limit of the connector; 0 means none [default: 1000, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l source-memory-request-mi -d 'Memory reserved for the connector [default: 256]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l source-memory-limit-mi -d 'Memory limit of the connector; 0 means none [default: 8192]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l sidecar-cpu-request-millicores -d 'CPU reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l sidecar-cpu-limit-millicores -d 'CPU limit of the sidecar; 0 means none [default: 500, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l sidecar-memory-request-mi -d 'Memory reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l sidecar-memory-limit-mi -d 'Memory limit of the sidecar; 0 means none [default: 4096]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l source-ephemeral-storage-limit-mi -d 'Limit of what the connector stores on its node; 0 means none [default: 20480]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l sidecar-ephemeral-storage-limit-mi -d 'Limit of what the sidecar stores on its node; 0 means none [default: 1024]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l source-capabilities -d 'Linux capabilities that the connector\'s container keeps, separated by commas, for images that do not run without: CHOWN,SETGID,SETUID' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l source-java-opts -d 'Options for connectors that run on a JVM [default: -Xmx7000m]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l log-level -d 'Least level of the program\'s own log: DEBUG, INFO, WARN or ERROR [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l db-log-level -d 'Least level in the table task_log [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l engine -d 'Where tasks run: kubernetes or local [default: kubernetes]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l local-runtime -d 'Where connectors come from with --local: auto, docker, podman or python (the package of the same name) [default: auto]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l container-read-only -d 'Whether images that --local runs can write to /tmp, /var/tmp, /run, /root and /home alone; false for one that needs more [default: true]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l state-dir -d 'Folder of what this machine must keep: the embedded database and the tasks that run with --local [default: $XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l cache-dir -d 'Folder of what can be fetched again: the connectors that --local installs [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l postgres-bin -d 'Folder of the programs postgres and initdb; no other folder is searched then [default: PATH, then where packages install them]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l to-same-case -d 'Lower-case table and column names'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l add-meta -d 'Add a column _jitsu_timestamp'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l no-deduplicate -d 'Append rows of streams that the catalog merges by primary key'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l full-sync -d 'Read from scratch and replace the tables'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l debug -d 'Run the connector with debug messages'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -s q -l quiet -d 'Show no progress'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -s v -l verbose -d 'Log more; up to -vvv, which includes the logs of libraries'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -l local -d 'Run tasks on this machine, without a cluster: the same as SYNCCTL_ENGINE=local'
complete -c syncctl -n "__fish_syncctl_using_subcommand read" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l http-port -d 'Port that `serve` listens on [default: 3043]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l port -d 'Older name of SYNCCTL_HTTP_PORT' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l http-host -d 'Address that `serve` listens on [default: 0.0.0.0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l auth-tokens -d 'Tokens of callers, separated by commas: plain ones, or salt.hash as `syncctl token` makes them; set it in the environment [default: everyone may call]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l raw-auth-tokens -d 'More tokens, all of them plain' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l tokens-file -d 'YAML file of tokens with names and limits, as `syncctl token create` writes it; read again when it changes' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l token-secret -d 'Secret that tokens are hashed with; several during a rotation, separated by commas [default: the public one of Jitsu\'s sync-controller]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l console-url -d 'Console that `serve` asks to start the read once a discover with thenRun has ended' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l console-token -d 'Token for that console; set it in the environment' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l instance-id -d 'Name of this process in metrics and in the Lease; env://NAME takes it from another variable [default: a UUID stored in ~/.syncctl/instance_id]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l http-max-body-mi -d 'Size limit of a request body [default: 32]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l http-max-connections -d 'Limit of concurrent connections; three quarters of them for requests, of which one address has three quarters [default: 1024]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l http-idle-seconds -d 'How long a caller may take for the head of a request, and pause while it sends a body or reads a response; less than 64 KiB a second on average counts as a pause [default: 10]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l tls-cert -d 'Certificate chain that `serve` presents, in PEM format; read again when it changes' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l tls-key -d 'Private key of that certificate, in PEM format' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l tls-client-ca -d 'Root certificates, in PEM format: callers must present a certificate that one of them has signed, in addition to a token; probes need none' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l start-spread-seconds -d 'Longest delay of a scheduled read where more than four are due at once; 0 starts all of them at once [default: 59]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sync-task-log-size -d 'Rows of source_task that are kept of each sync; older ones are deleted once they exceed the age as well [default: 3000]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sync-task-log-age -d 'How long all rows of source_task are kept; older ones are deleted where a sync has more than the number above [default: 60]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l task-log-keep-days -d 'How long lines of task_log are kept; 0 is without limit, the default is 60 where syncctl has created the table, else 0' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l allow-unisolated -d 'Whether `serve --local` runs Python packages with all of its own rights where it cannot isolate them [default: false]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l log-format -d 'Format of the service\'s own log: text or json [default: text]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l syncs-enabled -d '`false` or `0` ends `serve` at once: how a deployment is switched off without removing it [default: true]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l database-url -d 'Postgres database of results, logs and states; set it in the environment, where other users cannot see it [default: with --local, an embedded database: see `syncctl db`]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sidecar-database-url -d 'The same database as Pods reach it [default: the database URL]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l own-schema -d 'Schema of that database for tables that other programs do not know; created where the role may [default: syncctl]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sidecar-image -d 'Image with the sidecar, such as the one that `syncctl image` writes [default: in a Pod, the image of this program]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l init-image -d 'Image with a shell that prepares the files for a foreign sidecar such as jitsucom/sidecar' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l image-policy -d 'Connector images that may run, whoever asks: patterns such as airbyte/*:7.* or *@sha256:*, separated by commas, and the word require-digest [default: every image]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l bulker-url -d 'Bulker instance that takes the rows of reads without a destination, or with one of a type that is not loaded otherwise' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l bulker-auth-token -d 'Token for that Bulker instance; set it in the environment, where other users cannot see it' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l destination-hosts -d 'Hosts that callers\' destinations may be at: names, *.suffixes, addresses and networks (10.0.0.0/8), each with an optional :port, and directories of Unix sockets; separated by commas [default: any; with `serve` *, which is any but link-local addresses, cloud metadata and Unix sockets]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l kubernetes-client-config -d 'Kubeconfig: a path, its YAML text, an http or https address (of `kubectl proxy`), or `local` for the service account of this Pod' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l kubeconfig -d 'Kubeconfig file [default: what kubectl would use]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l context -d 'Context of the kubeconfig [default: the current context]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l namespace -d 'Namespace of the Pods [default: the context\'s namespace, else default]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l kubernetes-node-selector -d 'Nodes for the Pods, as a JSON object of labels' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l pods-service-account -d 'Service account of the Pods; its token is not mounted' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l container-status-check-seconds -d 'How often Pods are listed, in addition to the watch [default: 10]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l container-init-timeout-seconds -d 'How long a task may take to start, counted from its creation; with --local this includes the installation [default: 180, with --local 600]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l silence-seconds -d 'How long a connector may write nothing before its task fails [default: 8000]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l container-grace-shutdown-seconds -d 'How long a container may take to end after TERM [default: 60]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l task-timeout-hours -d 'How long a read may take; --timeout is finer [default: 48]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l source-cpu-request-millicores -d 'CPU reserved for the connector [default: 100]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l source-cpu-limit-millicores -d 'CPU limit of the connector; 0 means none [default: 1000, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l source-memory-request-mi -d 'Memory reserved for the connector [default: 256]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l source-memory-limit-mi -d 'Memory limit of the connector; 0 means none [default: 8192]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sidecar-cpu-request-millicores -d 'CPU reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sidecar-cpu-limit-millicores -d 'CPU limit of the sidecar; 0 means none [default: 500, with --local 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sidecar-memory-request-mi -d 'Memory reserved for the sidecar [default: 0]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sidecar-memory-limit-mi -d 'Memory limit of the sidecar; 0 means none [default: 4096]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l source-ephemeral-storage-limit-mi -d 'Limit of what the connector stores on its node; 0 means none [default: 20480]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l sidecar-ephemeral-storage-limit-mi -d 'Limit of what the sidecar stores on its node; 0 means none [default: 1024]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l source-capabilities -d 'Linux capabilities that the connector\'s container keeps, separated by commas, for images that do not run without: CHOWN,SETGID,SETUID' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l source-java-opts -d 'Options for connectors that run on a JVM [default: -Xmx7000m]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l log-level -d 'Least level of the program\'s own log: DEBUG, INFO, WARN or ERROR [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l db-log-level -d 'Least level in the table task_log [default: INFO]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l engine -d 'Where tasks run: kubernetes or local [default: kubernetes]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l local-runtime -d 'Where connectors come from with --local: auto, docker, podman or python (the package of the same name) [default: auto]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l container-read-only -d 'Whether images that --local runs can write to /tmp, /var/tmp, /run, /root and /home alone; false for one that needs more [default: true]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l state-dir -d 'Folder of what this machine must keep: the embedded database and the tasks that run with --local [default: $XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l cache-dir -d 'Folder of what can be fetched again: the connectors that --local installs [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l postgres-bin -d 'Folder of the programs postgres and initdb; no other folder is searched then [default: PATH, then where packages install them]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -s v -l verbose -d 'Log more; up to -vvv, which includes the logs of libraries'
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -l local -d 'Run tasks on this machine, without a cluster: the same as SYNCCTL_ENGINE=local'
complete -c syncctl -n "__fish_syncctl_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand image" -l name -d 'Name and tag of the image' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand image" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and not __fish_seen_subcommand_from create help" -l token -d 'Hash an existing token: - reads it from stdin, where other users cannot see it [default: a new token]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and not __fish_seen_subcommand_from create help" -s o -l output -d 'Print the result (and a failure) in this form [default: text on a terminal, else json]' -r -f -a "text\t'Indented JSON, for reading'
json\t'One line of JSON, for programs; failures are also printed as JSON'
yaml\t'YAML; failures are also printed as YAML'"
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and not __fish_seen_subcommand_from create help" -l token-secret -d 'Secret that is hashed with the token; set it in the environment, where other users cannot see it' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and not __fish_seen_subcommand_from create help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and not __fish_seen_subcommand_from create help" -f -a "create" -d 'Create a token with a name and limits, and its entry in the file of SYNCCTL_TOKENS_FILE'
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and not __fish_seen_subcommand_from create help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l name -d 'Name of the token in logs, metrics and `started_by`' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l expires -d 'When it expires, e.g. 2027-01-31T00:00:00Z [default: never]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l verb -d 'What it may do: spec, check, discover, read, cancel, tasks, logs or metrics; repeat it for several [default: all; with patterns all but metrics]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l sync -d 'Pattern for ids of syncs that it may use and see, e.g. \'team-a-*\'; repeat it for several [default: all]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l storage-key -d 'Pattern for storage keys that it may use [default: all]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l image -d 'Pattern for connector images that it may run, e.g. \'airbyte/*:7.*\' or \'*@sha256:*\' [default: all]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l max-tasks -d 'How many of its tasks may run at a time [default: any number]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l requests-per-minute -d 'How many requests it may send to one process of the service in a minute [default: any number]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l file -d 'File that gets the entry; created if missing' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l token -d 'Hash an existing token: - reads it from stdin, where other users cannot see it [default: a new token]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -s o -l output -d 'Print the result (and a failure) in this form [default: text on a terminal, else json]' -r -f -a "text\t'Indented JSON, for reading'
json\t'One line of JSON, for programs; failures are also printed as JSON'
yaml\t'YAML; failures are also printed as YAML'"
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -l token-secret -d 'Secret that is hashed with the token; set it in the environment, where other users cannot see it' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from help" -f -a "create" -d 'Create a token with a name and limits, and its entry in the file of SYNCCTL_TOKENS_FILE'
complete -c syncctl -n "__fish_syncctl_using_subcommand token; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and not __fish_seen_subcommand_from psql url stop hold help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and not __fish_seen_subcommand_from psql url stop hold help" -f -a "psql" -d 'Open a shell in it: psql with these arguments'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and not __fish_seen_subcommand_from psql url stop hold help" -f -a "url" -d 'Print its URL, for other programs'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and not __fish_seen_subcommand_from psql url stop hold help" -f -a "stop" -d 'Stop it now, unless it is in use'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and not __fish_seen_subcommand_from psql url stop hold help" -f -a "hold" -d 'Stop the server after its last user'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and not __fish_seen_subcommand_from psql url stop hold help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from psql" -l state-dir -d 'Folder of what this machine must keep: the embedded database and the tasks that run with --local [default: $XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from psql" -l cache-dir -d 'Folder of what can be fetched again: the connectors that --local installs [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from psql" -l postgres-bin -d 'Folder of the programs postgres and initdb; no other folder is searched then [default: PATH, then where packages install them]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from psql" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from url" -s o -l output -d 'Print the result (and a failure) in this form [default: text]' -r -f -a "text\t'Indented JSON, for reading'
json\t'One line of JSON, for programs; failures are also printed as JSON'
yaml\t'YAML; failures are also printed as YAML'"
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from url" -l state-dir -d 'Folder of what this machine must keep: the embedded database and the tasks that run with --local [default: $XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from url" -l cache-dir -d 'Folder of what can be fetched again: the connectors that --local installs [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from url" -l postgres-bin -d 'Folder of the programs postgres and initdb; no other folder is searched then [default: PATH, then where packages install them]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from url" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from stop" -s o -l output -d 'Print the result (and a failure) in this form [default: text]' -r -f -a "text\t'Indented JSON, for reading'
json\t'One line of JSON, for programs; failures are also printed as JSON'
yaml\t'YAML; failures are also printed as YAML'"
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from stop" -l state-dir -d 'Folder of what this machine must keep: the embedded database and the tasks that run with --local [default: $XDG_STATE_HOME/syncctl, else ~/.local/state/syncctl; for root /var/lib/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from stop" -l cache-dir -d 'Folder of what can be fetched again: the connectors that --local installs [default: $XDG_CACHE_HOME/syncctl, else ~/.cache/syncctl; for root /var/cache/syncctl]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from stop" -l postgres-bin -d 'Folder of the programs postgres and initdb; no other folder is searched then [default: PATH, then where packages install them]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from stop" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from hold" -s h -l help -d 'Print help'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from help" -f -a "psql" -d 'Open a shell in it: psql with these arguments'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from help" -f -a "url" -d 'Print its URL, for other programs'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from help" -f -a "stop" -d 'Stop it now, unless it is in use'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from help" -f -a "hold" -d 'Stop the server after its last user'
complete -c syncctl -n "__fish_syncctl_using_subcommand db; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c syncctl -n "__fish_syncctl_using_subcommand generate" -l into -d 'Directory for the files [default: write to stdout; of the man pages only the first]' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand generate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l command -d 'Command of the connector: spec, check, discover or read' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l stdout-pipe-file -d 'FIFO of the connector\'s stdout' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l stderr-pipe-file -d 'FIFO of the connector\'s stderr' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l secrets-dir -d 'Folder of the task\'s compressed documents' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l config-dir -d 'Folder where the connector reads its documents' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l reports-dir -d 'Folder of the exit code and the resource usage of the connector' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l termination-log -d 'File for a failure that cannot be written to the database' -r -F
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l mark -d 'Identifies a process of a local task' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l database-url -d 'Postgres database of results' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l own-schema -d 'Schema of that database for tables that other programs do not know; used where it exists' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l started-at -d 'When the task was accepted (RFC 3339)' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l package -d 'Connector image without its version' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l package-version -d 'Version of the connector image' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l connector-type -d 'Type of the connector' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l storage-key -d 'Key of the result of check and discover' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l sync-id -d 'Id of the sync that a read belongs to' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l task-id -d 'Id of the task' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l started-by -d 'Who started the task (JSON)' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l namespace -d 'Schema of the destination tables' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l table-name-prefix -d 'Prefix of every table name' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l to-same-case -d 'Lower-case table and column names' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l add-meta -d 'Add a column `_jitsu_timestamp`' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l deduplicate -d 'Merge rows by primary key' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l full-sync -d 'Start from scratch and replace the tables' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l console-overwrite -d 'Mode overwrite has the meaning of the Jitsu console: rows are merged by key, and an incremental stream without a state replaces its table; the default of other controllers' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l log-level -d 'Least level of the sidecar\'s own log' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l db-log-level -d 'Least level in `task_log`' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l task-timeout-hours -d 'How long the task may run, in hours' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l task-timeout-seconds -d 'How long the task may run, in seconds; takes precedence over the hours' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l init-timeout-seconds -d 'How long the connector may take to start' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l silence-seconds -d 'How long the connector may be silent' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l commit-seconds -d 'How long rows may wait for a state before they are committed without one' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l commit-mi -d 'How much row JSON may wait for a state, in MiB' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l cdc-deletion -d 'What becomes of rows that the source marks as deleted: soft or hard' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l max-records -d 'Stop after this number of records' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l destination-hosts -d 'Hosts that the destination may be at [default: any; of other controllers: any but link-local addresses, addresses of cloud metadata, and Unix sockets]' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l contract -d 'Version of the contract that the controller implements' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -l secrets-from-stdin -d 'Takes the documents and the database\'s URL from stdin'
complete -c syncctl -n "__fish_syncctl_using_subcommand sidecar" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c syncctl -n "__fish_syncctl_using_subcommand supervise" -l mark -d 'Marks the process as one of the task' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand supervise" -s h -l help -d 'Print help'
complete -c syncctl -n "__fish_syncctl_using_subcommand isolate" -l sandbox -d 'What the program can access (JSON)' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand isolate" -l mark -d 'Marks the process as one of the task' -r
complete -c syncctl -n "__fish_syncctl_using_subcommand isolate" -l init -d 'Runs as the first process of the PID namespace'
complete -c syncctl -n "__fish_syncctl_using_subcommand isolate" -s h -l help -d 'Print help'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "spec" -d 'Print a connector\'s specification'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "check" -d 'Test a connector\'s configuration'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "discover" -d 'List the streams that a configuration gives access to'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "read" -d 'Read rows from a connector and load them into the destination'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "serve" -d 'Serve the same tasks over HTTP'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "image" -d 'Write this program as a container image to stdout'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "token" -d 'Create a token for `syncctl serve`, and its salted hash for SYNCCTL_AUTH_TOKENS'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "db" -d 'Use the embedded database: a private PostgreSQL server in the state directory'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "generate" -d 'Write shell completions, man pages or the table of settings'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "sidecar" -d 'Capture a connector\'s output; runs next to the connector'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "supervise" -d 'Supervise a task that runs on this machine'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "isolate" -d 'Run a program isolated from this machine'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and not __fish_seen_subcommand_from spec check discover read serve image token db generate sidecar supervise isolate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and __fish_seen_subcommand_from token" -f -a "create" -d 'Create a token with a name and limits, and its entry in the file of SYNCCTL_TOKENS_FILE'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and __fish_seen_subcommand_from db" -f -a "psql" -d 'Open a shell in it: psql with these arguments'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and __fish_seen_subcommand_from db" -f -a "url" -d 'Print its URL, for other programs'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and __fish_seen_subcommand_from db" -f -a "stop" -d 'Stop it now, unless it is in use'
complete -c syncctl -n "__fish_syncctl_using_subcommand help; and __fish_seen_subcommand_from db" -f -a "hold" -d 'Stop the server after its last user'
