# Prints which versions of a package are available to the installer, as one line of JSON:
#
#     {"has_version": false, "newest": ["7.2.0", "7.2.1"], "error": null}
#
# `newest` are at most six versions, oldest first, without pre-releases if there are others. `error` is why an index
# could not be read. Reads the indexes of pip's configuration, or of uv's environment variables, by the simple API
# (https://peps.python.org/pep-0503/).
#
# Arguments: `uv` or `pip`, the package, its version.

import ast, base64, glob, json, os, re, ssl, subprocess, sys, sysconfig
from urllib import error, parse, request

installer, package, version = sys.argv[1:]
package = re.sub(r"[-_.]+", "-", package).lower()


def uv_settings():
    get = os.environ.get
    return {
        "index-url": get("UV_DEFAULT_INDEX") or get("UV_INDEX_URL"),
        "extra-index-url": get("UV_INDEX", "") + " " + get("UV_EXTRA_INDEX_URL", ""),
        "find-links": get("UV_FIND_LINKS", "").replace(",", " "),
        "no-index": get("UV_NO_INDEX"),
        "cert": get("SSL_CERT_FILE"),
    }


def pip_settings():
    command = [sys.executable, "-I", "-m", "pip", "config", "list"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, universal_newlines=True).stdout.splitlines()
    settings = {}
    # The later section wins. A line is `SECTION.NAME='VALUE'`.
    for section in ("global.", "install.", ":env:."):
        for line in lines:
            if line.startswith(section):
                name, _, value = line[len(section) :].partition("=")
                settings[name] = ast.literal_eval(value)
    return settings


settings = uv_settings() if installer == "uv" else pip_settings()


def words(name):
    # uv accepts `NAME=URL` for an index.
    return [re.sub(r"^[\w-]+=", "", word) for word in (settings.get(name) or "").split()]


proxies = dict.fromkeys(("http", "https"), settings["proxy"]) if settings.get("proxy") else None
tls = ssl.create_default_context(cafile=settings.get("cert") or None)
opener = request.build_opener(request.ProxyHandler(proxies), request.HTTPSHandler(context=tls))


def read(location):
    """A text that contains the names of the files at a location, which is a directory, a file or a URL."""
    url = parse.urlsplit(location)
    if url.scheme in ("", "file"):
        path = parse.unquote(url.path)
        page = os.path.join(path, "index.html")
        if os.path.isdir(path) and not os.path.isfile(page):
            return "\n".join(os.listdir(path))
        with open(page if os.path.isdir(path) else path, errors="replace") as file:
            return file.read()
    login, _, host = url.netloc.rpartition("@")
    page = request.Request(url._replace(netloc=host).geturl(), headers={"User-Agent": "syncctl"})
    if login:
        user, _, password = login.partition(":")
        token = base64.b64encode("{}:{}".format(parse.unquote(user), parse.unquote(password)).encode()).decode()
        # Not sent to the target of a redirect.
        page.add_unredirected_header("Authorization", "Basic " + token)
    with opener.open(page, timeout=10) as response:
        return response.read().decode(errors="replace")


def default_index():
    """The index that pip uses without configuration; uv has the same one. An environment of uv has no pip: then it is
    read from the copy that every Python brings for its own environments."""
    bundled = os.path.join(os.path.dirname(os.__file__), "ensurepip", "_bundled")
    for folder in filter(None, (sysconfig.get_config_var("WHEEL_PKG_DIR"), "/usr/share/python-wheels", bundled)):
        sys.path += sorted(glob.glob(os.path.join(folder, "pip-*.whl")))
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return None
    return PyPI.simple_url


versions, problem = set(), None
locations = words("find-links")
if str(settings.get("no-index") or "0").lower() in ("0", "false", "no", "off"):
    default = settings.get("index-url") or default_index()
    if not default:
        problem = "the default package index is unknown"
    indexes = ([default] if default else []) + words("extra-index-url")
    locations += ["{}/{}/".format(re.sub(r"^[\w-]+=", "", index).rstrip("/"), package) for index in indexes]

name = "[-_.]+".join(map(re.escape, package.split("-")))
file_name = re.compile(r"(?<![\w.-])" + name + r"-(\d[^-\s/\"'<>#]*?)(?:-[^\s/\"'<>#]*\.whl|\.tar\.gz|\.zip)", re.I)
for location in locations:
    try:
        versions.update(file_name.findall(read(location)))
    except FileNotFoundError:
        pass
    except Exception as failure:
        if getattr(failure, "code", None) not in (404, 410):
            cause = failure.reason if type(failure) is error.URLError else failure
            # The text of other exceptions may contain a part of the URL, and thus of a password.
            problem = str(cause) if isinstance(cause, OSError) else type(failure).__name__


def canonical(version):
    return re.sub(r"(\.0)+$", "", version)


releases = [one for one in versions if re.match(r"[\d.]+$", one)] or list(versions)
releases.sort(key=lambda one: [int(number) for number in re.findall(r"\d+", one)])
print(json.dumps({
    "has_version": canonical(version) in map(canonical, versions),
    "newest": releases[-6:],
    "error": problem,
}))
