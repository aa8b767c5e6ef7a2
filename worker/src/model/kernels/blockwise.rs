//! Causal grouped-query attention in fp32 as plain matrix products, for any device: some queries at a time meet the keys
//! up to the last of them, span by span.
//!
//! The query heads of a group are further rows of their key head's product, so keys and values are not repeated. Rows of
//! another kind become fp32 first, and the result is rounded.

use tch::{Kind, Tensor};

use super::{Attended, Heads, Result};

/// Queries whose scores exist at a time.
const QUERIES: i64 = 256;

/// See [`super::Kernels::attention`].
pub fn attention(qkv: &Tensor, bounds: &[i64], heads: Heads) -> Result<Attended> {
    let (rows, float) = (qkv.size()[0], (Kind::Float, qkv.device()));
    let out = Tensor::f_empty([rows, heads.query * heads.dim], float)?;
    let log_sum_exp = Tensor::f_empty([heads.query, rows], float)?;
    for span in spans(&qkv.f_to_kind(Kind::Float)?, bounds, heads)? {
        for block in span.blocks()? {
            let scores = block.scores()?;
            let sums = scores.f_logsumexp(-1, true)?;
            let probabilities = block.exponentiate(scores, &sums)?;
            block.put_queries(&out, &probabilities.f_bmm(&block.values)?)?;
            block.sums_in(&log_sum_exp)?.f_copy_(&sums.f_view([heads.query, -1])?).map(drop)?;
        }
    }
    Ok(Attended { out: out.f_to_kind(qkv.kind())?, log_sum_exp, random_state: None })
}

/// See [`super::Kernels::attention_backward`].
pub fn attention_backward(
    out_grad: &Tensor,
    qkv: &Tensor,
    attended: &Attended,
    bounds: &[i64],
    heads: Heads,
) -> Result<Tensor> {
    let [floats, out, out_grad] = [qkv, &attended.out, out_grad].map(|t| t.f_to_kind(Kind::Float));
    let (floats, out, out_grad) = (floats?, out?, out_grad?);
    let qkv_grad = floats.f_zeros_like()?;
    let grads = spans(&qkv_grad, bounds, heads)?;
    for (span, grad) in spans(&floats, bounds, heads)?.iter().zip(grads) {
        for block in span.blocks()? {
            let sums = block.sums_in(&attended.log_sum_exp)?.f_reshape([heads.kv, -1, 1])?;
            let probabilities = block.exponentiate(block.scores()?, &sums)?;
            let (out, out_grad) = (block.take_queries(&out)?, block.take_queries(&out_grad)?);
            let mean = out.f_mul(&out_grad)?.f_sum_dim_intlist(-1, true, Kind::Float)?;
            let scores_grad =
                out_grad.f_bmm(&block.values.f_transpose(1, 2)?)?.f_sub_(&mean)?.f_mul_(&probabilities)?;
            let (mut keys_grad, mut values_grad) = (block.seen(&grad.keys)?, block.seen(&grad.values)?);
            values_grad.f_baddbmm_(&probabilities.f_transpose(1, 2)?, &out_grad).map(drop)?;
            keys_grad.f_baddbmm_(&scores_grad.f_transpose(1, 2)?, &block.queries).map(drop)?;
            block.put_queries(&qkv_grad, &scores_grad.f_bmm(&block.keys)?.f_mul_scalar_(heads.scale())?)?;
        }
    }
    Ok(qkv_grad.f_to_kind(qkv.kind())?)
}

/// The rows of a span, fp32.
struct Span {
    heads: Heads,
    first_row: i64,
    /// `[length, query, dim]`
    queries: Tensor,
    /// `[kv, length, dim]`
    keys: Tensor,
    /// `[kv, length, dim]`
    values: Tensor,
}

/// Some queries of a span, and the keys that they see.
struct Block {
    heads: Heads,
    first_row: i64,
    num_rows: i64,
    /// Keys seen by the last query.
    num_seen: i64,
    /// Scaled, `[kv, group * rows, dim]`
    queries: Tensor,
    /// `[kv, seen, dim]`
    keys: Tensor,
    /// `[kv, seen, dim]`
    values: Tensor,
}

/// Views of fused rows, span by span.
fn spans(qkv: &Tensor, bounds: &[i64], heads: Heads) -> Result<Vec<Span>> {
    let span = |first_row: i64, end: i64| {
        let [queries, keys, values] = heads.split(&qkv.f_narrow(0, first_row, end - first_row)?)?;
        Ok(Span { heads, first_row, queries, keys: keys.f_transpose(0, 1)?, values: values.f_transpose(0, 1)? })
    };
    bounds.windows(2).map(|pair| span(pair[0], pair[1])).collect()
}

impl Span {
    fn blocks(&self) -> Result<Vec<Block>> {
        let length = self.queries.size()[0];
        (0..length).step_by(QUERIES as usize).map(|first| self.block(first, QUERIES.min(length - first))).collect()
    }

    fn block(&self, first: i64, num_rows: i64) -> Result<Block> {
        let heads = self.heads;
        let queries = by_group(&self.queries.f_narrow(0, first, num_rows)?, heads)?;
        let num_seen = first + num_rows;
        Ok(Block {
            heads,
            first_row: self.first_row + first,
            num_rows,
            num_seen,
            queries: queries.f_mul_scalar(heads.scale())?,
            keys: self.keys.f_narrow(1, 0, num_seen)?,
            values: self.values.f_narrow(1, 0, num_seen)?,
        })
    }
}

impl Block {
    /// `[kv, group * rows, seen]`, with minus infinity for keys after a query.
    fn scores(&self) -> Result<Tensor> {
        let scores = self.queries.f_bmm(&self.keys.f_transpose(1, 2)?)?;
        let (rows, options) = (self.num_rows, (Kind::Bool, scores.device()));
        let after = Tensor::f_ones([rows, rows], options)?.f_triu(1)?;
        let by_row = scores.f_view([-1, rows, self.num_seen])?;
        by_row.f_narrow(2, self.num_seen - rows, rows)?.f_masked_fill_(&after, f64::NEG_INFINITY).map(drop)?;
        Ok(scores)
    }

    /// Probabilities, in place of scores.
    fn exponentiate(&self, mut scores: Tensor, log_sum_exp: &Tensor) -> Result<Tensor> {
        Ok(scores.f_sub_(log_sum_exp)?.f_exp_()?)
    }

    /// Those of `[kv, length, dim]` that the block sees.
    fn seen(&self, keys: &Tensor) -> Result<Tensor> {
        Ok(keys.f_narrow(1, 0, self.num_seen)?)
    }

    /// Its part of `[query, rows]`.
    fn sums_in(&self, log_sum_exp: &Tensor) -> Result<Tensor> {
        Ok(log_sum_exp.f_narrow(1, self.first_row, self.num_rows)?)
    }

    /// Its rows of `[rows, query * dim ...]`, as `[kv, group * rows, dim]`.
    fn take_queries(&self, rows: &Tensor) -> Result<Tensor> {
        by_group(&self.queries_in(rows)?, self.heads)
    }

    /// The other way.
    fn put_queries(&self, rows: &Tensor, by_group: &Tensor) -> Result {
        let by_head = by_group.f_view([self.heads.query, self.num_rows, self.heads.dim])?;
        self.queries_in(rows)?.f_copy_(&by_head.f_transpose(0, 1)?).map(drop)?;
        Ok(())
    }

    /// `[rows, query, dim]`
    fn queries_in(&self, rows: &Tensor) -> Result<Tensor> {
        let Heads { query, dim, .. } = self.heads;
        let own = rows.f_narrow(0, self.first_row, self.num_rows)?.f_narrow(1, 0, query * dim)?;
        Ok(own.f_unflatten(1, [query, dim])?)
    }
}

/// `[rows, query, dim]` as `[kv, group * rows, dim]`.
fn by_group(rows: &Tensor, heads: Heads) -> Result<Tensor> {
    Ok(rows.f_transpose(0, 1)?.f_reshape([heads.kv, heads.group() * rows.size()[0], heads.dim])?)
}
