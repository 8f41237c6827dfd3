import jaxtyping
import pytest
import torch

from waver.training.losses import contrastive


def test_a_tensor_whose_shape_contradicts_the_signature_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'v2t'"):
        contrastive(torch.zeros(2, 4), torch.zeros(2, 3), torch.ones(()), offset=0)
