# Prints what of an installed package can be started, as one line of JSON. Argument: the package.

import importlib.metadata, json, sys

package = importlib.metadata.distribution(sys.argv[1])
files = [str(file) for file in package.files or []]
print(json.dumps({
    "scripts": sorted(entry.name for entry in package.entry_points if entry.group == "console_scripts"),
    "modules": sorted(file for file in files if file.count("/") == 1 and file.endswith(("/run.py", "/__main__.py"))),
}))
