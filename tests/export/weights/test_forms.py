"""Every form of a checkpoint gives the weights of the plain form, bit for bit."""

import pytest
import torch
from support.checkpoint_forms import Form, forms

from dinov2rt.export.weights.reading import read_backbone
from dinov2rt.export.weights.state_dict import to_float32

FORMS = list(forms())


def test_the_generator_makes_many_forms():
    assert len(set(map(str, FORMS))) == len(FORMS) >= 40


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_form_has_the_weights_of_the_plain_one(tmp_path, form: Form):
    place, expected = form.write(tmp_path)
    found = to_float32(read_backbone(place).state_dict)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name
