"""The plugin in a user's own project."""

from __future__ import annotations

import sys

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.live


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose warnings are errors, with an application ``shop``."""
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.makepyfile(
        shop="""
        from flask import Flask
        from flask_lifecycle import Lifecycle

        lifecycle = Lifecycle()

        def create_app():
            app = Flask(__name__)
            lifecycle.init_app(app)
            return app
        """
    )
    return pytester


def test_the_plugin_imports_nothing_of_the_package(project: pytest.Pytester) -> None:
    """In a project that does not use it, neither the package nor Flask is imported."""
    project.makepyfile(
        """
        import sys

        def test_modules(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("flask_lifecycle")
            assert not {"flask", "flask_lifecycle", "werkzeug"} & set(sys.modules)
        """
    )
    project.runpytest_subprocess("-p", "no:xdist").assert_outcomes(passed=1)


def test_the_fixtures_are_listed_with_what_they_do(project: pytest.Pytester) -> None:
    """``pytest --fixtures`` shows both."""
    result = project.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["lifecycle_server -- *", "*Start an application or a server*", "lifecycle_app -- *"])


def test_both_fixtures_without_any_configuration(project: pytest.Pytester) -> None:
    """A user's test gets them without a warning; the report of a failed test has the log of its server."""
    project.makepyfile(
        """
        import shop

        def test_server(lifecycle_server, tmp_path):
            server = lifecycle_server("shop:create_app")
            assert server.stop() == 0
            assert list(tmp_path.iterdir()) == []

        def test_app(lifecycle_app):
            assert lifecycle_app(shop.create_app).stop().clean

        def test_fails(lifecycle_server):
            assert lifecycle_server("shop:create_app").stop() == 3
        """
    )
    result = project.runpytest_subprocess("-rN")
    result.assert_outcomes(passed=2, failed=1, warnings=0)
    result.stdout.fnmatch_lines(["*Captured log of * lifecycle run -p * teardown*", "*shutdown complete in *"])
    assert result.stdout.str().count("Captured log of") == 1


def test_a_program_that_runs_pytest(project: pytest.Pytester) -> None:
    """A program that imports the application and then runs pytest gets no warning; ``flask test`` may be one."""
    # pytest rewrites the packages of plugins, and finds them in the list of files of their distributions. An editable
    # installation has no such list, so another distribution gets one.
    info = project.mkdir("other-1.0.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "RECORD").write_text("flask_lifecycle/__init__.py,,\n")
    (info / "entry_points.txt").write_text("[pytest11]\nother = other\n")
    project.makepyfile(other="", test_shop="def test_shop(lifecycle_app): ...")
    program = "import shop, sys, pytest; sys.exit(pytest.main())"
    project.run(sys.executable, "-W", "error", "-c", program).assert_outcomes(passed=1, warnings=0)
