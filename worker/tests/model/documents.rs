//! Tokens attend within their document, where the model is told what ends one.

use polo_worker::model::{Model, ModelOptions};
use tch::Tensor;

use crate::{ATEN, Case, HOST, WAYS, Way, bits};

/// Two samples of several documents each, whose last token is 96; nothing else is.
const DOCUMENT_END: i64 = 96;
const PACKED: [[i64; 12]; 2] = [
    [5, 17, 80, DOCUMENT_END, 3, 3, 41, 66, 12, DOCUMENT_END, 9, 30],
    [2, DOCUMENT_END, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11],
];

struct Masked {
    way: Way,
    case: Case,
    model: Model,
    params: Tensor,
}

impl Masked {
    fn new(way: Way) -> Self {
        let case = Case::load("tied_kv1");
        let options = ModelOptions { document_end: Some(DOCUMENT_END), ..Default::default() };
        let model = way.model(&case.config, options);
        let params = case.params(&model);
        Self { way, case, model, params }
    }

    fn logits(&self, inputs: &[i64]) -> Tensor {
        let inputs = Tensor::from_slice(inputs).unsqueeze(0);
        self.model.logits(&self.params, &inputs).expect("logits").squeeze_dim(0)
    }

    fn losses_and_grads(&self, samples: &[&[i64]]) -> (f64, Tensor) {
        let grads = self.params.zeros_like();
        let sample_loss = |sample: &&[i64]| {
            let tokens = Tensor::from_slice(sample).unsqueeze(0);
            let losses = self.model.loss_and_grad(&self.params, &grads, &tokens, 1.0, &|| false).expect("gradients");
            losses.iter().sum::<f64>()
        };
        (samples.iter().map(sample_loss).sum(), grads)
    }
}

#[test]
fn a_document_does_not_see_its_neighbours() {
    WAYS.map(Masked::new).iter().for_each(document_alone);
}

fn document_alone(masked: &Masked) {
    let document = |sample: &[i64]| masked.logits(sample).narrow(0, 4, 6).contiguous();
    let here = document(&PACKED[0]);
    let mut others = PACKED[0];
    others[..3].fill(77);
    others[10..].fill(78);
    assert_eq!(bits(&here.view(-1)), bits(&document(&others).view(-1)));
    others[3] = 77; // what was before has no end now, so it is the same document
    assert_ne!(bits(&here.view(-1)), bits(&document(&others).view(-1)));
    masked.way.assert_close("alone", &masked.logits(&PACKED[0][4..10]), &here);
}

#[test]
fn masked_samples_have_the_losses_and_gradients_of_their_documents_alone() {
    for masked in WAYS.map(Masked::new) {
        // The last token of a document has the next one's first token as its target, in a sample as alone.
        for (sample, cuts) in [(&PACKED[0], vec![0, 4, 10, 11]), (&PACKED[1], vec![0, 2, 11])] {
            let alone: Vec<_> = cuts.windows(2).map(|cut| &sample[cut[0]..=cut[1]]).collect();
            let ((packed_loss, packed), (loss, grads)) =
                (masked.losses_and_grads(&[sample]), masked.losses_and_grads(&alone));
            assert!((packed_loss - loss).abs() <= masked.way.loss_tolerance * loss, "{packed_loss} and {loss}");
            masked.way.assert_close("gradients", &packed, &grads);
        }
    }
}

/// The gradient of one document's losses is what is left when the losses before it are taken away: a sample that ends
/// where the document begins has those alone.
#[test]
fn a_documents_gradient_does_not_depend_on_what_was_before() {
    for masked in [HOST, ATEN].map(Masked::new) {
        let gradient = |before: [i64; 3]| {
            let sample = [&before[..], &[DOCUMENT_END, 3, 41, 66, 12]].concat();
            (masked.losses_and_grads(&[&sample]), masked.losses_and_grads(&[&sample[..5]]))
        };
        let difference = |before| {
            let ((all, all_grads), (first, first_grads)) = gradient(before);
            (all - first, all_grads - first_grads)
        };
        let ((loss, grads), (other_loss, other_grads)) = (difference([5, 17, 80]), difference([9, 30, 2]));
        assert!((loss - other_loss).abs() <= masked.way.loss_tolerance * loss, "{loss} and {other_loss}");
        masked.way.assert_close("gradients", &grads, &other_grads);
    }
}

#[test]
fn a_mask_without_documents_ends_changes_no_bit() {
    for masked in WAYS.map(Masked::new) {
        let sample = PACKED[1].map(|id| id.min(DOCUMENT_END - 1));
        let without =
            masked.case.model(masked.way, false).logits(&masked.params, &Tensor::from_slice(&sample).unsqueeze(0));
        assert_eq!(bits(&masked.logits(&sample).reshape(-1)), bits(&without.expect("logits").reshape(-1)));
    }
}
