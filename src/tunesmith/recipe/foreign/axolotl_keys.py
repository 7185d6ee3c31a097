"""axolotl's keys that change nothing here (SKIPPED) or have no equal (NO_EQUAL), each group with its reason."""

from __future__ import annotations

from dataclasses import replace

from tunesmith.recipe.foreign import shared
from tunesmith.recipe.foreign.rules import NoEqual, Skip

OTHER_TRAINING = "import the file of a supervised fine-tuning"
OTHER_LOSS = "a recipe's loss is the mean over trained tokens"
MOE = "take a dense base"

SKIPPED = (
    *shared.TRAINER_SKIPPED,
    Skip("attn_implementation flash_attention xformers_attention sdp_attention sage_attention eager_attention flex_attention "
         "flex_attn_compile_kwargs flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp flash_optimum "
         "s2_attention gemma4_hybrid_attn_impl large_head_attention flash_attn_d512 sdpa_varlen fused_attn_kernel "
         "experts_implementation lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel chunked_cross_entropy "
         "chunked_cross_entropy_num_chunks tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp "
         "llama4_linearized_experts torch_compile_options deepcompile use_kernels liger_rope liger_rms_norm "
         "liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation liger_cross_entropy "
         "liger_fused_linear_cross_entropy liger_kernel_impl cut_cross_entropy expert_backend moe_grouped_backend "
         "moe_dequant_chunk_size moe_bnb_fast use_scattermoe use_sonicmoe use_dsv4_kernels use_glm_dsa_kernels "
         "dsv4_shared_mlp_lora_kernel ple_cpu_offload lora_on_cpu qlora_sharded_model_loading "
         "experimental_skip_move_to_device heads_k_stride ring_attn_func", shared.SPEED),
    Skip("fsdp_version fsdp_final_state_dict_type fp32_norms fp32_norm_classes ddp world_size device device_map max_memory "
         "gpu_memory_limit dp_shard_size dp_replicate_size sequence_parallel_degree context_parallel_size "
         "tensor_parallel_size expert_parallel_size expert_parallel_backend expert_parallel_num_nvl_bytes "
         "expert_parallel_num_rdma_bytes expert_parallel_token_capacity expert_parallel_fallback_on_unsupported use_ray "
         "ray_run_name resources_per_worker", shared.ONE_DEVICE),
    Skip("selective_checkpointing activation_offloading layer_offloading embeddings_skip_upcast gc_steps gc_collect_steps",
         shared.CHECKPOINTED),
    Skip("bfloat16 float16 peft_autocast_adapter_dtype", shared.PRECISION),
    Skip("dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory skip_prepare_dataset "
         "num_dataset_shards_to_save push_dataset_to_hub hf_use_auth_token streaming streaming_multipack_buffer_size "
         "is_preprocess preprocess_iterable shuffle_merged_datasets shuffle_before_merging_datasets", shared.LOADING),
    Skip("pad_to_sequence_len pad_to_multiple_of sample_packing_group_size sample_packing_bin_size "
         "sample_packing_sequentially sample_packing_mp_start_method sample_packing_eff_est eval_sample_packing "
         "multipack_real_batches batch_flattening pretrain_multipack_buffer_size pretrain_multipack_attn",
         "rows are packed end to end here, without padding, and cannot see each other"),
    Skip("eval_batch_size", "the held-out loss is packed like training; eval.batch_size is of generation"),
    Skip("dataset_exact_deduplication", "exact duplicates are dropped and counted anyway (data.dedup)"),
    Skip("auto_resume_from_checkpoints", "a run goes on with `tunesmith train RECIPE --resume RUN`, and exactly"),
    Skip("save_safetensors save_first_step dynamic_checkpoint",
         "checkpoints are safetensors, whole or absent; Ctrl-C writes one"),
    Skip("use_mlflow mlflow_run_name hf_mlflow_log_artifacts", "MLflow is on (track.mlflow), with adapter and report"),
    Skip("include_tokens_per_second include_tkps profiler_steps profiler_steps_start",
         shared.LOGGED + ", with tokens a second"),
    Skip("model_type type_of_model cls_model_config tokenizer_type tokenizer_use_fast tokenizer_legacy "
         "tokenizer_save_jinja_files processor_type processor_kwargs is_falcon_derived_model is_llama_derived_model "
         "is_mistral_derived_model is_qwen_derived_model", "the kind of model and tokenizer is read from the base"),
    Skip("strict debug capabilities env_capabilities axolotl_config_path total_num_tokens total_supervised_tokens plugins",
         "of axolotl itself; what a plugin does is said by the plugin's own keys"),
    Skip("generate_samples num_generation_samples generation_max_new_tokens generation_temperature generation_top_p "
         "generation_top_k generation_prompt_ratio generation_do_sample eval_table_size eval_max_new_tokens",
         "held-out rows are answered by base and tuned model in the report (eval.samples)"),
    Skip("gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature inference",
         "of inference; `tunesmith serve` is an OpenAI-compatible server"),
    Skip("merge_lora merge_method qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant "
         "qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size dion_lr "
         "dion_momentum dion_rank_fraction dion_rank_multiple_of adam_epsilon2 adam_beta3 torchdistx_path",
         "a setting of something else that would have to be on, and is on this list by its own key"),
    Skip("wandb_name wandb_run_id wandb_mode wandb_entity wandb_watch wandb_log_model comet_api_key comet_workspace "
         "comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config trackio_project_name "
         "trackio_run_name trackio_space_id otel_metrics_host otel_metrics_port swanlab_project swanlab_experiment_name "
         "swanlab_description swanlab_mode swanlab_workspace swanlab_api_key swanlab_log_model swanlab_web_host "
         "swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret swanlab_log_completions "
         "swanlab_completion_log_interval swanlab_completion_max_buffer",
         "of a tracker that is not here: MLflow (track.mlflow) has the metrics"),
    Skip("image_size image_resize_algorithm freeze_mm_modules role_boundaries", "text only here"),
)

NO_EQUAL = (
    *shared.TRAINER_NO_EQUAL,
    replace(shared.QUANTISED,
            keys="gptq bnb_config_kwargs model_quantization_config model_quantization_config_kwargs use_onebitllms "
            "quantize_moe_experts nonexpert_quantization gemma4_nf4_nonexpert gemma4_fp8_nonexpert dsv4_fp8_nonexpert_mode "
            "dsv4_fp8_lora_kernel dsv4_bf16_all dsv4_fp4_grouped_mode nvfp4_merge_aware nvfp4_merge_aware_start_step"),
    NoEqual("train_on_inputs", "questions and system prompts are trained too",
            "leave it off: the mask is made from the conversation's structure (`tunesmith data show` shows it)",
            consequence="the recipe trains the answers alone, so that losses are not comparable"),
    NoEqual("roles_to_train", "turns of other roles are trained", "a recipe trains the assistant's turns", off=(["assistant"],),
            consequence="the recipe trains the assistant's turns"),
    NoEqual("train_on_eos train_on_eot", "other stop tokens are trained",
            "nothing: every trained turn ends in a trained stop token", off=("turn",),
            consequence="every trained turn ends in a trained stop token, and no other is trained"),
    NoEqual("tokens added_tokens_overrides eot_tokens", "tokens are added to the tokenizer",
            "their embeddings would have to be trained whole; write them as ordinary text, which the tokenizer splits",
            consequence="the recipe uses the base's own tokenizer, which splits them"),
    NoEqual("resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings fix_untrained_tokens reinit_weights "
            "peft_trainable_token_indices peft_ensure_weight_tying embedding_lr embedding_lr_scale loraplus_lr_embedding",
            "embeddings are changed or trained", "leave the embeddings as they are: an adapter is served without them",
            off=(False, 0, 1e-06)),
    NoEqual("default_system_message", "a system prompt is put before rows that have none", "write it into the rows",
            consequence="the rows are trained as they are"),
    NoEqual("chat_template_kwargs", "the template gets arguments",
            "write a Jinja file with them fixed, and name it in data.template",
            consequence="the base's own template is used as it is"),
    NoEqual("lora_model_dir", "training begins from an adapter", "merge that adapter into its base and name the result in base",
            consequence="the recipe begins from the base with a new adapter"),
    NoEqual("peft peft_init_lora_weights", "the adapter begins otherwise (LoftQ, PiSSA, ...)",
            "set method.init: pissa if it was that; else nothing: A is random and B is 0, as in the LoRA paper",
            off=(True, False, 0),
            consequence="the recipe begins as the LoRA paper does"),
    NoEqual("lora_fan_in_fan_out lora_target_parameters lora_rank_pattern lora_alpha_pattern peft_layers_to_transform "
            "peft_layers_pattern peft_layer_replication", "some layers get other adapters, or none",
            "set method.rank_pattern, method.alpha_pattern or method.layers_to_transform",
            consequence="all layers that method.targets names get an adapter of the same rank"),
    NoEqual("relora relora_prune_ratio relora_prune_method relora_cpu_offload jagged_restart_steps "
            "jagged_restart_warmup_steps jagged_restart_anneal_steps",
            "the adapter is merged and restarted during training (ReLoRA)", "a higher method.rank",
            off=(False, 0, "magnitude")),
    NoEqual("lisa_n_layers lisa_step_interval lisa_layers_attribute unfrozen_parameters spectrum_top_fraction "
            "spectrum_model_name mora", "a chosen part of the base's own parameters is trained",
            "LoRA on all linear layers, or method: {type: full}, are the nearest", off=(False, 0, "model.layers")),
    NoEqual("batch_size", "the whole batch is given, beside micro_batch_size",
            "train.tokens_per_step is counted from micro_batch_size and gradient_accumulation_steps",
            consequence="it is not counted with"),
    NoEqual("lr_quadratic_warmup cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor", "the schedule has another shape",
            "the recipe's schedules rise along a line and go down to 0", consequence="the recipe's schedule goes down to 0"),
    NoEqual("lr_groups", "some modules learn at another rate", "one train.learning_rate for the adapter"),
    NoEqual("evals_per_epoch", "the held-out loss is measured so often an epoch",
            "set train.eval_every_steps; `tunesmith check` tells the steps",
            consequence="the recipe measures it at the beginning and the end"),
    NoEqual("saves_per_epoch", "checkpoints are written so often an epoch",
            "set train.checkpoint.every_steps; `tunesmith check` tells the steps",
            consequence="the recipe writes one every 50 steps"),
    NoEqual("early_stopping_patience loss_watchdog_threshold loss_watchdog_patience", "training ends when the loss says so",
            "set train.eval_every_steps to see it, and train.max_steps to end there",
            consequence="the recipe trains all its epochs; losses that are not finite stop it"),
    NoEqual("curriculum_sampling", "rows are trained in their order", "nothing: " + shared.SHUFFLING,
            consequence=shared.SHUFFLING),
    NoEqual("eval_sequence_len min_sample_len", "other limits of length",
            "filter the rows; data.max_tokens holds for all of them", consequence="data.max_tokens is the only limit"),
    NoEqual("max_packed_sequence_len", "packing of an older kind", "nothing: rows are packed anyway"),
    NoEqual("dataset_shard_num dataset_shard_idx", "a part of the data is trained",
            "data.mix.caps limits how many rows a source gives", consequence="the recipe trains all rows"),
    NoEqual("pretraining_sample_concatenation use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks "
            "rope_scaling overrides_of_model_config overrides_of_model_kwargs model_config model_kwargs scaling_softmax "
            "scaling_softmax_factor scaling_softmax_bias", "the base works otherwise than its configuration says",
            "change the base's config.json in a directory of your own, and name that in base",
            consequence="the base is used as it is"),
    NoEqual("noisy_embedding_alpha", "noise is added to the embeddings (NEFTune)",
            "train.epochs lower, or method.dropout, against overfitting"),
    NoEqual("use_eaft eaft_alpha eaft_k liger_use_token_scaling grokfast_alpha grokfast_lamb diffusion",
            "another loss, or changed gradients", OTHER_LOSS, off=(False, 0, 1.0, 20)),
    NoEqual("kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_beta kd_normalize_topk kd_online_server_base_url "
            "kd_online_topk kd_online_server kd_online_timeout kd_temperature_min", "a teacher is distilled",
            "answer the questions with the teacher and train those rows", off=(False, 0, 120)),
    NoEqual("dense_mixer", "experts are routed otherwise in training", MOE),
    NoEqual("fp8 fp8_config fp8_enable_fsdp_float8_all_gather", "training computes in 8 bits", "nothing: " + shared.PRECISION),
    NoEqual("qat quantization llmcompressor", "the model is trained for, or put into, fewer bits",
            "quantise the merged model after its release"),
    NoEqual("trainer_cls hatchery nemo_gym_enabled nemo_gym_dir nemo_gym_auto_clone nemo_gym_config_paths nemo_gym_head_port "
            "nemo_gym_server_timeout nemo_gym_verify_timeout nemo_gym_run_timeout nemo_gym_datasets nemo_gym_auto_start "
            "nemo_gym_model_name nemo_gym_multi_turn nemo_gym_max_turns", "another program trains", OTHER_TRAINING),
    NoEqual("trl vllm ebft center_rewards_coefficient num_labels dpo_use_weighting dpo_label_smoothing "
            "precompute_ref_log_probs dpo_use_liger_kernel dpo_padding_free dpo_loss_type dpo_loss_weights dpo_beta "
            "dpo_use_logits_to_keep dpo_generate_during_eval dpo_norm_loss rpo_alpha orpo_alpha simpo_gamma cpo_alpha "
            "kto_desirable_weight kto_undesirable_weight rl_beta max_prompt_len",
            "a setting of preference or reinforcement learning", OTHER_TRAINING,
            consequence="without `rl` it does nothing there either"),
    NoEqual("do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split lm_eval_tasks "
            "lm_eval_batch_size lm_eval_post_train lm_eval_model", "benchmarks are run",
            "eval.metrics are measured on the held-out rows, base and tuned",
            consequence="the report has the recipe's metrics alone"),
    NoEqual("use_wandb use_comet use_trackio use_tensorboard use_swanlab use_otel_metrics", "metrics go to another tracker",
            "set track.mlflow to a tracking URI", consequence="metrics go to MLflow"),
    NoEqual("evaluation_strategy", "an old name of eval_strategy, which axolotl refuses", "write eval_strategy"),
    NoEqual("tokenizer_use_mistral_common", "another tokenizer library", "take a base with a Hugging Face tokenizer",
            consequence="the base's own tokenizer is used"),
)
