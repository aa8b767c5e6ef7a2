//! What is refused, and how a pass is stopped.

use polo_worker::model::{Model, ModelError, ModelOptions};
use tch::{Device, Kind, Tensor};

use crate::{Case, HOST, WAYS};

#[test]
fn cancelling_is_asked_between_blocks_both_ways_and_stops() {
    let case = Case::load("tied_kv1");
    let model = case.model(HOST, false);
    let params = case.params(&model);
    let ask = |limit: usize| {
        let asked = std::cell::Cell::new(0);
        let cancelled = || asked.replace(asked.get() + 1) == limit;
        let result = model.loss_and_grad(&params, &params.zeros_like(), case.get("tokens"), 1.0, &cancelled);
        (result, asked.get())
    };
    let layers = case.config.num_hidden_layers;
    assert_eq!(ask(usize::MAX).1, 2 * layers + 1);
    for limit in 0..=2 * layers {
        let (result, asked) = ask(limit);
        assert!(matches!(result, Err(ModelError::Cancelled)), "cancelled at question {limit}");
        assert_eq!(asked, limit + 1);
    }
}

#[test]
fn where_memory_is_short_the_error_says_what_takes_less() {
    let error = Tensor::f_zeros([1 << 45], (Kind::Float, Device::Cpu)).expect_err("128 TiB");
    let error = ModelError::from(error);
    assert!(matches!(error, ModelError::OutOfMemory(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("model.recompute = true") && text.contains("polo plan") && !text.contains('\n'), "{text}");
}

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let case = Case::load("tied_kv1");
    for (way, (row, column)) in WAYS.iter().flat_map(|way| [(0, 3), (1, 13)].map(|at| (*way, at))) {
        let model = case.model(way, false);
        let params = case.params(&model);
        let tokens = case.get("tokens").copy();
        let _ = tokens.get(row).get(column).fill_(97);
        let error = model.loss(&params, &tokens).expect_err("97 is not below 97").to_string();
        assert!(error.contains("token 97") && error.contains("vocabulary of 97"), "{error}");
    }
}

#[test]
fn an_impossible_architecture_is_refused_by_field() {
    let mut config = Case::load("tied_kv1").config;
    config.num_key_value_heads = 3;
    let error = Model::new(&config, ModelOptions::default()).err().expect("refused").to_string();
    assert!(error.contains("num_key_value_heads is 3") && error.contains("4"), "{error}");
}

#[test]
fn parameters_on_another_device_than_the_models_are_refused() {
    let case = Case::load("tied_kv1");
    let params = case.params(&case.model(HOST, false));
    let options = ModelOptions { device: Device::Cuda(0), ..Default::default() };
    let model = Model::new(&case.config, options).expect("a model needs no device yet");
    let error = model.loss(&params, case.get("tokens")).expect_err("another device").to_string();
    assert!(error.contains("wanted it on Cuda(0), found it on Cpu"), "{error}");
}
