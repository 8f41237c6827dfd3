import jaxtyping
import pytest
import torch

from waver.training.losses import contrastive


def test_a_tensor_of_another_shape_than_the_signature_says_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'v2t'"):
        contrastive(torch.zeros(2, 4), torch.zeros(2, 3), torch.ones(()), offset=0)
