//! The wording of pip 23 to 25 and of uv, as they were heard.

use super::{Refusal, accepts, masked};
use crate::pod::connector::python::names::Package;

#[track_caller]
fn refusal(said: &str) -> Refusal {
    let package = Package { name: "t-source-x".into(), version: "2".into(), command: "source-x".into() };
    Refusal::of(&package, &said.lines().map(str::to_owned).collect::<Vec<_>>())
}

fn other_python(package: &str, wants: &str) -> Refusal {
    Refusal::OtherPython { package: package.to_owned(), wants: wants.to_owned() }
}

#[test]
fn another_python_is_asked_for_in_many_words() {
    for (said, package, wants) in [
        (
            "ERROR: Package 't-source-x' requires a different Python: 3.11.7 not in '<3.11,>=3.10'",
            "t-source-x",
            "<3.11,>=3.10",
        ),
        ("ERROR: Package 't-dep' requires a different Python: 3.11.7 not in '>=3.12'", "t-dep", ">=3.12"),
        (
            "ERROR: Ignored the following versions that require a different python version: 1 Requires-Python >=3.8,<3.11; 2 Requires-Python >=3.12\n\
             ERROR: Could not find a version that satisfies the requirement t-source-x==2 (from versions: 0.1)\n\
             ERROR: No matching distribution found for t-source-x==2",
            "t-source-x",
            ">=3.12",
        ),
        (
            "ERROR: Ignored the following versions that require a different python version: 7 Requires-Python >=3.12\n\
             ERROR: Could not find a version that satisfies the requirement t-dep>=7 (from t-source-x) (from versions: 5, 6)\n\
             ERROR: No matching distribution found for t-dep>=7",
            "t-dep",
            ">=3.12",
        ),
        (
            "error: No solution found when resolving dependencies\n  cause: Because t-source-x==2 requires Python >=3.12 and you require t-source-x==2, we can conclude that your requirements are unsatisfiable.",
            "t-source-x",
            ">=3.12",
        ),
        (
            "  ╰─▶ Because the current Python version (3.11.7) does not satisfy Python>=3.12,<4 and t-source-x==2 depends on Python>=3.12,<4, we can conclude",
            "t-source-x",
            ">=3.12,<4",
        ),
        (
            "  cause: Because t-dep==1 requires Python >=3.12 and all versions of t-source-x depend on t-dep==1, we can conclude",
            "t-dep",
            ">=3.12",
        ),
    ] {
        assert_eq!(refusal(said), other_python(package, wants), "{said}");
    }
}

#[test]
fn a_version_that_is_not_there_is_no_question_of_python() {
    let said = "ERROR: Ignored the following versions that require a different python version: 1 Requires-Python >=3.12\n\
                ERROR: Could not find a version that satisfies the requirement t-source-x==2 (from versions: 0.1, 0.2)\n\
                ERROR: No matching distribution found for t-source-x==2";
    let versions = vec!["0.1".to_owned(), "0.2".to_owned()];
    assert_eq!(refusal(said), Refusal::NoVersion(versions));
}

#[test]
fn what_is_not_there_is_the_package_or_its_version_or_something_that_it_needs() {
    let missing = |name: &str| {
        format!(
            "ERROR: Could not find a version that satisfies the requirement {name} (from versions: none)\n\
             ERROR: No matching distribution found for {name}"
        )
    };
    for (said, expected) in [
        (missing("t-source-x==2"), Refusal::NoPackage),
        (missing("T_Source.X==2"), Refusal::NoPackage),
        (missing("t-dep>=2"), Refusal::NoDependency("t-dep>=2".into())),
        (
            "  cause: Because t-source-x was not found in the package registry and you require t-source-x==2, we".into(),
            Refusal::NoPackage,
        ),
        (
            "  cause: Because there is no version of t-source-x==2 and you require t-source-x==2, we".into(),
            Refusal::NoVersion(vec![]),
        ),
        (
            "  cause: Because t-dep was not found in the package registry and all versions of t-source-x depend on t-dep>=2".into(),
            Refusal::NoDependency("t-dep".into()),
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement t-source-x==2 (from versions: 1, 2)\n\
             ERROR: No matching distribution found for t-source-x==2"
                .into(),
            Refusal::Other("none of its files fits this machine and this Python".into()),
        ),
    ] {
        assert_eq!(refusal(&said), expected, "{said}");
    }
}

#[test]
fn no_answer_is_not_taken_for_no_package() {
    let none = "ERROR: Could not find a version that satisfies the requirement t-source-x==2 (from versions: none)\n\
                ERROR: No matching distribution found for t-source-x==2";
    for (said, why) in [
        (
            "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f8b0a8197d0>: Failed to establish a new connection: [Errno 111] Connection refused')': /simple/t-source-x/",
            "[Errno 111] Connection refused",
        ),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'ProxyError('Cannot connect to proxy.', NewConnectionError('<pip object at 0x7f>: Failed to establish a new connection: [Errno -2] Name or service not known'))': /simple/t-source-x/",
            "[Errno -2] Name or service not known",
        ),
    ] {
        assert_eq!(refusal(&format!("{said}\n{none}")), Refusal::Network(why.into()), "{said}");
    }
    let uv = "error: Request failed after 3 retries in 10.2s\n  cause: Failed to fetch: https://user:pass@nohost.invalid/simple/x/\n  \
              cause: client error (Connect)\n  cause: tcp connect error\n  cause: Connection refused (os error 111)";
    assert_eq!(refusal(uv), Refusal::Network("Connection refused (os error 111)".into()));
    let uv = "error: Request failed after 3 retries in 10.2s\n  cause: error sending request for url (https://me:pass@x/y)\n  \
              cause: dns error\n  cause: failed to lookup address information: Name or service not known";
    assert_eq!(refusal(uv), Refusal::Network("failed to lookup address information: Name or service not known".into()));
    // One that came back and then had the package.
    let recovered = "WARNING: Retrying (Retry(total=4)) after connection broken by 'X'\n\
                     ERROR: Could not find a version that satisfies the requirement t-source-x==2 (from versions: 1)\n\
                     ERROR: No matching distribution found for t-source-x==2";
    assert_eq!(refusal(recovered), Refusal::NoVersion(vec!["1".into()]));
}

#[test]
fn a_build_that_failed_is_told_by_its_package_and_its_most_telling_line() {
    let pip = "Collecting t-source-x==2
Processing ./wheels/t-broken-1.tar.gz (from t-source-x==2)
  Building wheel for t-broken (setup.py): started
  error: subprocess-exited-with-error

  × python setup.py bdist_wheel did not run successfully.
  │ exit code: 1
  ╰─> [3 lines of output]
      running bdist_wheel
      building 'x' extension
      error: command 'gcc' failed: No such file or directory
      [end of output]

  note: This error originates from a subprocess, and is likely not a problem with pip.
  ERROR: Failed building wheel for t-broken
ERROR: Could not build wheels for t-broken, which is required to install pyproject.toml-based projects";
    let expected = Refusal::NotBuilt {
        package: "t-broken".into(),
        why: "error: command 'gcc' failed: No such file or directory".into(),
    };
    assert_eq!(refusal(pip), expected);
    // Before there is a wheel to build, only the last package that was taken up tells which.
    let early: Vec<&str> = pip.lines().filter(|line| !line.contains("wheel for")).collect();
    assert_eq!(refusal(&early.join("\n")), expected);
    let uv = "error: Failed to build `t-broken==1`
  cause: The build backend returned an error
  cause: Call to `setuptools.build_meta:__legacy__.get_requires_for_build_wheel` failed (exit status: 1)

         [stderr]
         some words
         error: command gcc failed: No such file or directory

hint: `t-broken` (v1) was included because `t-source-x` (v2) depends on `t-broken==1`";
    let expected = Refusal::NotBuilt {
        package: "t-broken==1".into(),
        why: "error: command gcc failed: No such file or directory".into(),
    };
    assert_eq!(refusal(uv), expected);
}

#[test]
fn a_full_disk_and_a_quarrel_are_told_from_the_rest() {
    let full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device";
    assert_eq!(refusal(full), Refusal::DiskFull);
    let quarrel = "ERROR: Cannot install t-source-x==2 because these package versions have conflicting dependencies.\n\n\
                   The conflict is caused by:\n    t-source-x 2 depends on t-dep==2\n    t-other 1 depends on t-dep==1\n\n\
                   To fix this you could try to:\n1. loosen\n\nERROR: ResolutionImpossible: for help visit x";
    let text =
        "its dependencies contradict each other: t-source-x 2 depends on t-dep==2, t-other 1 depends on t-dep==1";
    assert_eq!(refusal(quarrel), Refusal::Other(text.into()));
    assert_eq!(
        refusal("some\nERROR: new words of http://me:pw@x/\n\n"),
        Refusal::Other("new words of http://***@x/".into())
    );
    assert_eq!(refusal(""), Refusal::Other("it does not say why".into()));
}

#[test]
fn who_logs_in_at_an_address_is_hidden() {
    for (text, shown) in [
        ("nothing to hide", "nothing to hide"),
        ("at https://user:pass@host/simple and http://host/x", "at https://***@host/simple and http://host/x"),
        ("'https://token@host'", "'https://***@host'"),
        ("https://user:p@ss/word@host/x https://b@c", "https://***@host/x https://***@c"),
    ] {
        assert_eq!(masked(text), shown);
    }
}

#[test]
fn a_python_is_compared_with_what_is_wanted() {
    for (wants, version, expected) in [
        (">=3.10,<3.12", "3.11.7", Some(true)),
        (">=3.10,<3.12", "3.12.0", Some(false)),
        ("<3.12,>=3.10", "3.9.18", Some(false)),
        ("==3.11.*", "3.11.2", Some(true)),
        ("!=3.11.*,>=3.8", "3.11.2", Some(false)),
        (">=3.9, <4", "3.13.0", Some(true)),
        ("<=3.11", "3.11.2", Some(false)),
        ("~=3.9", "3.11.2", None),
        ("of another version", "3.11.2", None),
    ] {
        assert_eq!(accepts(wants, version), expected, "{wants} {version}");
    }
}
