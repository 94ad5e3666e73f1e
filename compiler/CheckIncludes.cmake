cmake_minimum_required(VERSION 3.25)

# Fails where a file in FOLDER includes a header of a room that is not in ALLOWED (names with commas
# between them). ROOM is the folder's name.
string(REPLACE "," ";" ALLOWED "${ALLOWED}")
file(GLOB files ${FOLDER}/*.h ${FOLDER}/*.cpp)
foreach(file IN LISTS files)
  file(STRINGS ${file} includes REGEX "^#include \"compiler/")
  foreach(line IN LISTS includes)
    string(REGEX MATCH "compiler/([a-z]+)/" found "${line}")
    if(NOT CMAKE_MATCH_1 IN_LIST ALLOWED)
      message(SEND_ERROR "${file}: ${line}: the room ${ROOM} may include of the compiler: ${ALLOWED}")
    endif()
  endforeach()
endforeach()
