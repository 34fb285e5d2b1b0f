// Every operator's schema, once.
//
// refuse: raise an error for values that the Python face refuses by name, where the kernel sees them anyway. CUDA kernels
// take no notice: the host would have to wait.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(reidops, m) {
  m.def("euclidean_distance(Tensor x, Tensor y, bool squared) -> Tensor");
  m.def(
      "euclidean_distance_backward(Tensor grad, Tensor x, Tensor y, Tensor distance, bool squared)"
      " -> (Tensor, Tensor)");

  m.def("shortest_path(Tensor cost) -> Tensor");
  m.def("shortest_path_backward(Tensor grad, Tensor cost) -> Tensor");
  m.def("shortest_path_indices(Tensor cost) -> Tensor");

  m.def("dmli(Tensor x, Tensor y, bool aligned, bool refuse=False) -> Tensor");
  m.def("dmli_backward(Tensor grad, Tensor x, Tensor y, bool aligned) -> (Tensor, Tensor)");
  m.def("dmli_matrix(Tensor x, Tensor y, bool aligned, str precision) -> Tensor");

  m.def(
      "batch_hard(Tensor features, Tensor labels, str precision, bool refuse=False)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "batch_hard_backward(Tensor grad_positive, Tensor grad_negative, Tensor features, Tensor positive_distance,"
      " Tensor negative_distance, Tensor positive_index, Tensor negative_index) -> Tensor");
  m.def("batch_hard_from_distance(Tensor distance, Tensor labels) -> (Tensor, Tensor, Tensor, Tensor)");

  m.def("knn(Tensor query, Tensor gallery, int k, str precision) -> (Tensor, Tensor)");

  m.def(
      "k_reciprocal(Tensor? query, Tensor? gallery, Tensor? query_local, Tensor? gallery_local, int k1, int k2,"
      " float lambda_value, str variant, str precision) -> Tensor");
  m.def(
      "k_reciprocal_topk(Tensor? query, Tensor? gallery, Tensor? query_local, Tensor? gallery_local, int k1, int k2,"
      " float lambda_value, str variant, int topk, str precision) -> (Tensor, Tensor)");
  m.def(
      "k_reciprocal_from_distance(Tensor query_gallery, Tensor query_query, Tensor gallery_gallery, int k1, int k2,"
      " float lambda_value, str variant) -> Tensor");

  m.def(
      "rank_metrics(Tensor distance, Tensor query_ids, Tensor gallery_ids, Tensor? query_cameras,"
      " Tensor? gallery_cameras, int max_rank, str protocol, int num_draws, int seed, bool refuse=False)"
      " -> (Tensor, Tensor, Tensor, Tensor)");

  m.def("channel_attention(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)");
  m.def(
      "channel_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output,"
      " Tensor statistics) -> (Tensor, Tensor, Tensor)");
}
