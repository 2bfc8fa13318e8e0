"""The list of published chat templates that the bench reads. It runs itself outside of the tests: it downloads."""

from bench import chat_templates, template_sources
from insource.config.base_models import SMOLLM2


def test_each_template_of_the_list_has_a_known_source() -> None:
    lines = [line.split("\t") for line in chat_templates.LIST.read_text(encoding="utf-8").splitlines()]
    models = [line for line in lines if not line[0].startswith("#")]
    assert len({name for name, *_ in models}) == len(models)
    packages = {source.partition(":")[0] for _, source, *_ in models}
    assert packages == {*template_sources.PACKAGES, "trl", SMOLLM2}
    assert all(3 <= len(line) <= 6 or line[1] == SMOLLM2 for line in models)


def test_templates_of_an_installed_package_are_files_and_other_bases_are_left_alone() -> None:
    with template_sources.write_templates({"trl:qwen3.jinja", "acme/model", "templates/own.jinja"}) as paths:
        assert paths.keys() == {"trl:qwen3.jinja"}
        assert "<|im_start|>" in paths["trl:qwen3.jinja"].read_text(encoding="utf-8")
    assert not paths["trl:qwen3.jinja"].exists()
