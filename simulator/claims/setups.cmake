# Embeds simulator/claims/setups.csv: the setups under which published figures are evaluated.
set(KVATLAS_SETUPS_SOURCE ${CMAKE_BINARY_DIR}/generated/claim_setups_generated.cpp)
kvatlas_embed_table(${CMAKE_SOURCE_DIR}/simulator/claims/setups.csv ${KVATLAS_SETUPS_SOURCE} kvatlas::sim::detail setups_text)
