from waver.on_ray.doctor.examine import check_cluster


def test_workers_that_do_not_fit_on_the_nodes_are_an_error_or_with_wait_s_a_warning(load_tiny):
    def levels(workers: int, **settings) -> dict[str, str]:
        overrides = {"resources.workers": workers, "train.global_batch_size": 2 * workers + 2, **settings}
        return {f.check: f.level for f in check_cluster(load_tiny(**overrides), None, None, before="train")}

    # The cluster has six CPUs; a worker takes one, and half a CPU for each of its loaders.
    assert levels(6) == {"cluster": "ok", "workers": "ok"}
    assert levels(4, **{"resources.loaders_per_worker": 1}) == {"cluster": "ok", "workers": "ok"}
    assert levels(4, **{"resources.loaders_per_worker": 2}) == {"cluster": "ok", "workers": "error"}
    assert levels(7, **{"resources.wait_s": 60}) == {"cluster": "ok", "workers": "warning"}
