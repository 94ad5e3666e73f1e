# A room of the compiler: one folder, one library, linking only the rooms below it.
#
#   normforge_room(NAME [BELOW ROOM...] SOURCES FILE... [LIBRARIES LIBRARY...])
#
# FILEs lie in the folder NAME. The build fails where one of the folder's files includes a header of
# a room that is neither NAME nor below it, directly or through others.
function(normforge_room name)
  cmake_parse_arguments(PARSE_ARGV 1 room "" "" "BELOW;SOURCES;LIBRARIES")
  set(folder ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${name})
  list(TRANSFORM room_SOURCES PREPEND ${folder}/)
  set(below ${room_BELOW})
  foreach(one IN LISTS room_BELOW)
    get_property(further TARGET normforge_${one} PROPERTY NORMFORGE_BELOW)
    list(APPEND below ${further})
  endforeach()
  list(REMOVE_DUPLICATES below)

  add_library(normforge_${name} STATIC ${room_SOURCES})
  set_property(TARGET normforge_${name} PROPERTY NORMFORGE_BELOW "${below}")
  list(TRANSFORM room_BELOW PREPEND normforge_)
  target_link_libraries(normforge_${name}
    PUBLIC normforge_headers normforge_llvm ${room_BELOW} ${room_LIBRARIES})

  file(GLOB headers CONFIGURE_DEPENDS ${folder}/*.h)
  set(stamp ${CMAKE_CURRENT_BINARY_DIR}/${name}.includes)
  list(JOIN below "," allowed)
  add_custom_command(OUTPUT ${stamp}
    COMMAND ${CMAKE_COMMAND} -DROOM=${name} -DALLOWED=${name},${allowed}
            -DFOLDER=${folder} -P ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/CheckIncludes.cmake
    COMMAND ${CMAKE_COMMAND} -E touch ${stamp}
    DEPENDS ${room_SOURCES} ${headers} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/CheckIncludes.cmake
    VERBATIM)
  add_custom_target(normforge_${name}_includes DEPENDS ${stamp})
  add_dependencies(normforge_${name} normforge_${name}_includes)
endfunction()
