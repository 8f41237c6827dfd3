import pytest

from waver.on_ray.jobs import AddressError, dashboard_address, is_loopback


@pytest.mark.parametrize(
    ("option", "environ", "expected"),
    [
        ("http://head:8265/", {}, "http://head:8265"),
        ("http://head:8265", {"RAY_API_SERVER_ADDRESS": "http://other:8265"}, "http://head:8265"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://other:8265"}, "http://other:8265"),
        (None, {"RAY_ADDRESS": "https://ray.example.com"}, "https://ray.example.com"),
        (None, {"RAY_ADDRESS": "http://a:1", "RAY_API_SERVER_ADDRESS": "http://b:2"}, "http://b:2"),
    ],
)
def test_the_option_precedes_the_environment(option, environ, expected):
    assert dashboard_address(option, environ) == expected


@pytest.mark.parametrize(
    ("option", "environ", "expected"),
    [
        (None, {}, "--address is missing: give the address of the cluster's dashboard"),
        (
            None,
            {"RAY_ADDRESS": "10.0.0.1:6379"},
            r"--address is missing \(RAY_ADDRESS=10.0.0.1:6379 is not the address of",
        ),
        ("head:6379", {}, "--address head:6379: .* begins with http:// or https://, as in http://head:8265"),
        (
            "ray://head:10001",
            {},
            "--address ray://head:10001: .* begins with http:// or https://, as in http://head:8265",
        ),
        ("http://", {}, "as in http://HEAD:8265"),
        ("http://head:many", {}, "--address http://head:many: "),
        ("http://me:opensesame@head:8265", {}, "contains a password"),
    ],
)
def test_an_address_that_is_not_of_a_dashboard_is_an_error(option, environ, expected):
    with pytest.raises(AddressError, match=expected) as refused:
        dashboard_address(option, environ)
    assert "opensesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8265", True),
        ("http://localhost:1", True),
        ("http://[::1]:8265", True),
        ("http://10.0.0.1:8265", False),
        ("http://localhost.example.com", False),
    ],
)
def test_loopback_addresses_are_recognised(address, expected):
    assert is_loopback(address) is expected
